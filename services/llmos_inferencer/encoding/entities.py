"""token-classification: labels of words, joined to entities. Long texts are read in windows that overlap."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from llmos.contracts.inference import Entity, InferenceRequested, Output
from llmos.errors import Rejected
from llmos_inferencer.encoding.labels import DIGITS, check_finite, check_labels, softmax
from llmos_inferencer.encoding.texts import TextEngine, TextRow
from llmos_inferencer.engine import Prepared, Row

OUTSIDE = "O"


class Word(Struct):
    """A word of the text: its number, where its first token stands in the window, its characters from–to."""

    number: int
    at: int
    start: int
    end: int


class TokenClassifier(TextEngine):
    """token-classification."""

    def _truncate(self) -> None:
        length = self.contract.max_length
        self._tokenizer.enable_truncation(max_length=length, stride=self.contract.stride or length // 4)

    def _encode(self, texts: list[Any]) -> list[Prepared]:
        if any(isinstance(text, tuple) for text in texts):
            raise Rejected("this model takes single texts", remedy="Leave out `pair`.", param="inputs")
        result = []
        skip = len(self.contract.prefix)
        for text, encoded in zip(texts, self._tokenizer.encode_batch(texts), strict=True):
            rows = [
                TextRow(len(one.ids), ids=one.ids, types=one.type_ids, window=_words(one, skip))
                for one in (encoded, *encoded.overflowing)
            ]
            result.append(Prepared(rows, tokens=sum(row.length for row in rows), source=text[skip:]))
        return result

    def _of_ids(self, given: Any) -> Prepared:
        raise Rejected("this model takes texts: entities are places in a text", param="inputs")

    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        logits = self._run(rows)
        if logits.ndim != 3 or logits.shape[2] != len(self.contract.labels):
            raise Rejected(f"the model gives {logits.shape} for {len(self.contract.labels)} labels")
        return [
            softmax(logits[at, [word.at for word in row.window]]) if row.window else None
            for at, row in enumerate(rows)
            if isinstance(row, TextRow)
        ]

    def read(self, prepared: Prepared, found: Sequence[Any], request: InferenceRequested) -> Output:
        best: dict[int, tuple[int, Word, NDArray[np.float32]]] = {}
        for row, rows in zip(prepared.rows, found, strict=True):
            assert isinstance(row, TextRow)
            for word, scores in zip(row.window, rows if rows is not None else (), strict=True):
                check_finite(scores)
                middle = min(word.at, row.length - word.at)  # the window that shows most around the word counts
                known = best.get(word.number)
                if known is not None:
                    word.end = max(word.end, known[1].end)
                if known is None or middle > known[0]:
                    best[word.number] = (middle, word, scores)
        labels = self.contract.labels
        ordered = [best[number][1:] for number in sorted(best)]
        chosen = [(word, labels[int(scores.argmax())], float(scores.max())) for word, scores in ordered]
        return Output(entities=join(chosen, prepared.source))

    def _check_graph(self) -> None:
        check_labels(self.contract)
        super()._check_graph()


def join(words: Sequence[tuple[Word, str, float]], text: str) -> list[Entity]:
    """Words in their order, each with its label and probability, as entities.

    `B-X` begins one, `I-X` goes on with one of X (and begins one where there is none); with names that have no prefix,
    neighbours of one label are one entity. `O` is none. The score is the words' mean.
    """
    groups: list[tuple[str, list[tuple[Word, float]]]] = []
    going_on = False
    for word, label, score in words:
        if label == OUTSIDE:
            going_on = False
            continue
        prefix, name = (label[:1], label[2:]) if label[1:2] == "-" and label[:1] in "BI" else ("I", label)
        if going_on and prefix == "I" and groups[-1][0] == name:
            groups[-1][1].append((word, score))
        else:
            groups.append((name, [(word, score)]))
        going_on = True
    entities = []
    for name, members in groups:
        start, end = members[0][0].start, members[-1][0].end
        mean = sum(score for _, score in members) / len(members)
        entities.append(Entity(name, round(mean, DIGITS), text[start:end], start, end))
    return entities


def _words(encoded: Any, skip: int) -> list[Word]:
    """The words of a window; the first `skip` characters are the prefix."""
    words: list[Word] = []
    for at, (number, (start, end)) in enumerate(zip(encoded.word_ids, encoded.offsets, strict=True)):
        if number is None or end <= skip:
            continue
        if words and words[-1].number == number:
            words[-1].end = end - skip
        else:
            words.append(Word(number, at, max(start - skip, 0), end - skip))
    return words
