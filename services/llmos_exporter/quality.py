"""Metrics of every task, summed up row by row."""

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from llmos_exporter.sources import Numbers


class Classes:
    """`accuracy`, `f1` (macro, over the labels that occur or are predicted) and `loss` (mean cross entropy, nats).

    A row's `truth` is the number of its label, an answer its logits `[labels]`.
    """

    def __init__(self) -> None:
        self._truth: list[int] = []
        self._logits: list[Numbers] = []

    def add(self, rows: Sequence[Any], answers: Sequence[Numbers]) -> None:
        self._truth += [row.truth for row in rows]
        self._logits += answers

    def numbers(self) -> dict[str, float]:
        truth, exact = np.asarray(self._truth), np.stack(self._logits).astype(np.float64)
        found = exact.argmax(1)
        return {
            "accuracy": float((found == truth).mean()),
            "f1": macro_f1(truth.tolist(), found.tolist()),
            "loss": float(-log_softmax(exact)[np.arange(len(truth)), truth].mean()),
        }


class Tags:
    """`accuracy` of words' tags, and `f1` of entities: right only when type and both ends are (as CoNLL counts it).

    Labels without B- and I- have no entities; their f1 is the macro average of the tags. A row's `truth` is its words
    and their tags, an answer the logits `[tokens, labels]`. A word that was cut off is no entity.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._outside = "O" if "O" in labels else labels[0]
        self._truth: list[str] = []
        self._found: list[str] = []
        self._entities = Counter[str]()

    def add(self, rows: Sequence[Any], answers: Sequence[Numbers]) -> None:
        for row, logits in zip(rows, answers, strict=True):
            words, tags = row.truth
            found = self._tags(row.given[0], words, row.windows[0], logits)
            self._truth += tags
            self._found += found
            true, said = set(entities(tags)), set(entities(found))
            self._entities.update(right=len(true & said), true=len(true), said=len(said))

    def _tags(self, text: str, words: Sequence[str], window: Any, logits: Numbers) -> list[str]:
        """The tag of each word: that of the first token which begins in it."""
        starts = np.cumsum([0, *(len(word) + 1 for word in words)])[:-1]
        tags = [self._outside] * len(words)
        seen = set()
        for token, span in enumerate(window.spans):
            if span is None or span[0] >= span[1]:
                continue
            start = span[0] + len(text[span[0] : span[1]]) - len(text[span[0] : span[1]].lstrip())
            word = int(np.searchsorted(starts, start, side="right")) - 1
            if word not in seen:
                seen.add(word)
                tags[word] = self._labels[int(logits[token].argmax())]
        return tags

    def numbers(self) -> dict[str, float]:
        same = [one == other for one, other in zip(self._truth, self._found, strict=True)]
        if any(label[:2] in ("B-", "I-") for label in self._labels):
            f1 = 2 * self._entities["right"] / max(1, self._entities["true"] + self._entities["said"])
        else:
            f1 = macro_f1(self._truth, self._found)
        return {"accuracy": sum(same) / max(1, len(same)), "f1": f1}


def entities(tags: Iterable[str]) -> list[tuple[str, int, int]]:
    """(type, first, behind last) of what BIO tags mark; an I- that continues nothing begins an entity."""
    found: list[tuple[str, int, int]] = []
    kind, first = "", 0
    for at, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if kind and (mark != "I" or name != kind):
            found.append((kind, first, at))
            kind = ""
        if mark in ("B", "I") and not kind and name:
            kind, first = name, at
    return found


class Answers:
    """`exact_match` and `f1` of words, as SQuAD counts them: the best over the right answers of a question.

    A row's `truth` is its context and the right answers, none if there is none; an answer holds start and end logits
    `[tokens of all windows, 2]`.
    """

    def __init__(self, max_answer: int) -> None:
        self._max_answer = max_answer
        self._exact: list[float] = []
        self._f1: list[float] = []

    def add(self, rows: Sequence[Any], answers: Sequence[Numbers]) -> None:
        for row, logits in zip(rows, answers, strict=True):
            context, right = row.truth
            found = best_span(row.windows, logits, context, self._max_answer)
            wanted = [_words(answer) for answer in right] or [[]]
            self._exact.append(max(float(_words(found) == words) for words in wanted))
            self._f1.append(max(overlap(words, _words(found)) for words in wanted))

    def numbers(self) -> dict[str, float]:
        return {"exact_match": float(np.mean(self._exact)), "f1": float(np.mean(self._f1))}


def best_span(windows: Sequence[Any], logits: Numbers, context: str, longest: int) -> str:
    """The piece of the context whose start and end score highest together, at most `longest` tokens."""
    best, answer, at = -np.inf, "", 0
    for window in windows:
        scores = logits[at : at + len(window.ids)]
        at += len(window.ids)
        inside = [place for place, span in enumerate(window.spans) if span is not None and span[0] < span[1]]
        if not inside:
            continue
        first, last = inside[0], inside[-1] + 1
        sums = scores[first:last, 0, None] + scores[None, first:last, 1]
        sums = np.where(np.tril(np.triu(np.ones_like(sums)), longest - 1) > 0, sums, -np.inf)
        start, end = np.unravel_index(int(sums.argmax()), sums.shape)
        if sums[start, end] > best:
            best = float(sums[start, end])
            answer = context[window.spans[first + start][0] : window.spans[first + end][1]]
    return answer


def _words(text: str) -> list[str]:
    """Words as SQuAD compares them: lower case, no punctuation, no article."""
    plain = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def overlap(wanted: Sequence[str], found: Sequence[str]) -> float:
    """F1 of two bags of words; two empty ones are the same."""
    if not wanted or not found:
        return float(wanted == found)
    return 2 * sum((Counter(wanted) & Counter(found)).values()) / (len(wanted) + len(found))


class Similarity:
    """`spearman` and `pearson` correlation of cosines with the rows' scores; 0 where either does not vary.

    A row's `truth` is its score, an answer two vectors `[2, dimensions]`.
    """

    def __init__(self) -> None:
        self._truth: list[float] = []
        self._found: list[float] = []

    def add(self, rows: Sequence[Any], answers: Sequence[Numbers]) -> None:
        self._truth += [row.truth for row in rows]
        for one, other in answers:
            lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
            self._found.append(float(one @ other) / max(lengths, 1e-12))

    def numbers(self) -> dict[str, float]:
        from scipy.stats import rankdata

        return {
            "spearman": _correlation(rankdata(self._truth), rankdata(self._found)),
            "pearson": _correlation(np.asarray(self._truth), np.asarray(self._found)),
        }


def _correlation(one: Any, other: Any) -> float:
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


def macro_f1(truth: Sequence[Any], found: Sequence[Any]) -> float:
    """The mean F1 of the labels that occur or are predicted."""
    hits = Counter(one for one, other in zip(truth, found, strict=True) if one == other)
    occurring, predicted = Counter(truth), Counter(found)
    scores = [2 * hits[label] / (occurring[label] + predicted[label]) for label in occurring | predicted]
    return float(np.mean(scores))


def log_softmax(logits: Any) -> Any:
    """Along the last axis, in float64."""
    exact = logits.astype(np.float64)
    exact -= exact.max(-1, keepdims=True)
    return exact - np.log(np.exp(exact).sum(-1, keepdims=True))


class NextTokens:
    """`loss` (nats a token), `perplexity`, and `accuracy` of the next token, over all tokens together.

    A row has `ids` and `first`, an answer the logits `[tokens behind first, vocab]`.
    """

    def __init__(self) -> None:
        self._loss = 0.0
        self._right = 0
        self._tokens = 0

    def add(self, rows: Sequence[Any], answers: Sequence[Numbers]) -> None:
        for row, logits in zip(rows, answers, strict=True):
            wanted = np.asarray(row.ids[row.first :])
            self._loss -= float(log_softmax(logits)[np.arange(len(wanted)), wanted].sum())
            self._right += int((logits.argmax(-1) == wanted).sum())
            self._tokens += len(wanted)

    def numbers(self) -> dict[str, float]:
        loss = self._loss / max(1, self._tokens)
        return {
            "loss": loss,
            "perplexity": float(np.exp(min(loss, 700.0))),
            "accuracy": self._right / max(1, self._tokens),
        }


class Texts:
    """What was written against what is right, by task: `bleu` and `chrf` (0–100, sacrebleu), `rouge1`, `rouge2` and
    `rougeL` (F1, 0–1, with stemming), or `wer` and `cer`.

    A row's `truth` is the right text; `read` makes texts of rows and answers.
    """

    def __init__(self, task: str, read: Callable[[Sequence[Any], Sequence[Numbers]], list[str]]) -> None:
        self._task = task
        self._read = read
        self._truth: list[str] = []
        self._found: list[str] = []

    def add(self, rows: Sequence[Any], answers: Sequence[Numbers]) -> None:
        self._truth += [row.truth for row in rows]
        self._found += self._read(rows, answers)

    def numbers(self) -> dict[str, float]:
        if self._task == "speech-recognition":
            return errors(self._truth, self._found)
        if self._task == "translation":
            import sacrebleu

            bleu = sacrebleu.corpus_bleu(self._found, [self._truth]).score
            return {"bleu": float(bleu), "chrf": float(sacrebleu.corpus_chrf(self._found, [self._truth]).score)}
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
        scores = [scorer.score(*pair) for pair in zip(self._truth, self._found, strict=True)]
        return {name: float(np.mean([score[name].fmeasure for score in scores])) for name in scores[0]}


def errors(truth: Sequence[str], found: Sequence[str]) -> dict[str, float]:
    """`wer` and `cer`: the share of words, and of characters, that are wrong, missing or too many (Levenshtein).

    Capitals and more than one space do not count.
    """
    import jiwer

    right, said = ([" ".join(text.lower().split()) for text in texts] for texts in (truth, found))
    return {"wer": float(jiwer.wer(right, said)), "cer": float(jiwer.cer(right, said))}
