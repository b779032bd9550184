"""question-answering: the span of the context that answers. Long contexts are read in windows that overlap."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from llmos.contracts.inference import Answer, InferenceRequested, Output
from llmos.errors import Rejected
from llmos_inferencer.encoding.labels import DIGITS, check_finite
from llmos_inferencer.encoding.texts import TextEngine, TextRow
from llmos_inferencer.engine import Prepared, Row

LONGEST = 30  # tokens of an answer, where the artifact says nothing


class QuestionAnswerer(TextEngine):
    """question-answering: `text` is the question, `pair` the context."""

    pairs: ClassVar[bool] = True

    def _truncate(self) -> None:
        length = self.contract.max_length
        self._tokenizer.enable_truncation(
            max_length=length, stride=self.contract.stride or length // 4, strategy="only_second"
        )

    def _encode(self, texts: list[Any]) -> list[Prepared]:
        result = []
        for at, (question, context) in enumerate(texts):
            try:
                encoded = self._tokenizer.encode(question, context)
            except Exception as error:  # tokenizers raises a bare Exception for a question that leaves no room
                raise Rejected(
                    f"the question leaves no room for its context: {error}",
                    remedy=f"Question and context share {self.contract.max_length} tokens: ask a shorter one.",
                    param=f"inputs[{at}].text",
                ) from error
            rows = []
            for one in (encoded, *encoded.overflowing):
                places = [place for place, part in enumerate(one.sequence_ids) if part == 1]
                spans = [one.offsets[place] for place in places]
                rows.append(TextRow(len(one.ids), ids=one.ids, types=one.type_ids, window=(places, spans)))
            result.append(Prepared(rows, tokens=sum(row.length for row in rows), source=context))
        return result

    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        logits = self._run(rows)
        if logits.ndim != 3 or logits.shape[2] != 2:
            raise Rejected(f"the model gives {logits.shape}, and an answer needs a start and an end")
        return [logits[at, row.window[0]] for at, row in enumerate(rows) if isinstance(row, TextRow)]

    def read(self, prepared: Prepared, found: Sequence[Any], request: InferenceRequested) -> Output:
        """The best span of all windows; its score is the product of the probabilities of its start and its end."""
        best, span = -np.inf, (0, 0)
        for row, logits in zip(prepared.rows, found, strict=True):
            assert isinstance(row, TextRow)
            if not len(logits):
                continue
            check_finite(logits)
            start, end, score = best_span(logits[:, 0], logits[:, 1], self.contract.max_answer or LONGEST)
            if score > best:
                best, spans = score, row.window[1]
                span = (spans[start][0], spans[end][1])
        if best == -np.inf:
            return Output(answer=Answer("", 0.0, 0, 0))
        everything = np.concatenate(list(found)).astype(np.float64)
        total = np.logaddexp.reduce(everything[:, 0]) + np.logaddexp.reduce(everything[:, 1])
        text = prepared.source[span[0] : span[1]]
        return Output(answer=Answer(text, round(float(np.exp(best - total)), DIGITS), *span))


def best_span(starts: NDArray[np.float32], ends: NDArray[np.float32], longest: int) -> tuple[int, int, float]:
    """The span of at most `longest` tokens whose start and end logits `[tokens]` add up to most: first, last, sum."""
    padded = np.concatenate([ends, np.full(longest - 1, -np.inf, ends.dtype)])
    sums = starts[:, None] + sliding_window_view(padded, longest)
    start, more = divmod(int(sums.argmax()), longest)
    return start, start + more, float(sums[start, more])
