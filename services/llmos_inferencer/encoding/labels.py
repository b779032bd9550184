"""One label for a whole input: logits to probabilities, the best first. For texts, pictures and sounds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmos.contracts.inference import InferenceRequested, LabelScore, Output
from llmos.contracts.models import ServingContract
from llmos.errors import Rejected
from llmos_inferencer.encoding.texts import TextEngine
from llmos_inferencer.engine import NotFinite, Prepared, Row

DIGITS = 6  # of a probability


class Classifier(TextEngine):
    """text-classification: a text, or a pair of texts."""

    def run(self, rows: Sequence[Row]) -> Sequence[Any]:
        return list(probabilities(self._run(rows), self.contract, len(rows)))

    def read(self, prepared: Prepared, found: Sequence[Any], request: InferenceRequested) -> Output:
        return labelled(found[0], self.contract.labels, request.top)

    def _check_graph(self) -> None:
        check_labels(self.contract)
        super()._check_graph()


def check_labels(contract: ServingContract) -> None:
    """Raise `Rejected` for a contract without labels."""
    if not contract.labels:
        raise Rejected("llmos.json names 0 labels", remedy="Export the model again.")


def probabilities(logits: NDArray[np.float32], contract: ServingContract, rows: int) -> NDArray[np.float32]:
    """The softmax of logits `[rows, labels]`. Raises `Rejected` for another shape."""
    if logits.shape != (rows, len(contract.labels)):
        raise Rejected(f"the model gives {logits.shape} for {rows} inputs and {len(contract.labels)} labels")
    return softmax(logits)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis."""
    scaled = np.exp(logits - logits.max(axis=-1, keepdims=True))
    result: NDArray[np.float32] = scaled / scaled.sum(axis=-1, keepdims=True)
    return result


def labelled(row: NDArray[np.float32], labels: Sequence[str], top: int) -> Output:
    """One row of probabilities as an answer: the best label first, at most `top` of them (0: all), 6 decimals."""
    check_finite(row)
    order = np.argsort(-row, kind="stable")[: top if top > 0 else None]
    scores = [LabelScore(labels[at], round(float(row[at]), DIGITS)) for at in order]
    return Output(scores[0].label, scores[0].score, scores)


def check_finite(numbers: NDArray[np.float32]) -> None:
    """Raise `NotFinite` if there is a NaN or an infinity."""
    if not np.isfinite(numbers).all():
        raise NotFinite("the model gave no finite number for this input", remedy="Correct or leave out this input.")
