"""Measuring a classifier: quality on labelled rows, parity of two sets of logits, latency of one text."""

import time
from collections.abc import Callable, Sequence
from statistics import median

import numpy as np

from llmos_exporter.batches import Logits

WARM_UP_RUNS = 3
TIMED_RUNS = 64
TIMED_FOR_S = 10.0


class Parity:
    """How far a graph's logits lie from the trained model's, over all batches that were added."""

    def __init__(self) -> None:
        self._max = 0.0
        self._sum = 0.0
        self._count = 0
        self._same = 0
        self._rows = 0

    def add(self, wanted: Logits, got: Logits) -> None:
        """Compare one batch, both `[rows, labels]`. A shape that differs, NaN and infinity are infinitely far."""
        same_shape = wanted.shape == got.shape
        apart = np.abs(wanted.astype(np.float64) - got) if same_shape else np.full(wanted.shape, np.inf)
        apart = np.where(np.isfinite(apart), apart, np.inf)
        self._max = max(self._max, float(apart.max()))
        self._sum += float(apart.sum())
        self._count += apart.size
        self._same += int((wanted.argmax(1) == got.argmax(1)).sum()) if same_shape else 0
        self._rows += len(wanted)

    def numbers(self) -> dict[str, float]:
        """`max_abs_diff` and `mean_abs_diff` of logits, `agreement` of labels (0–1), and how many `rows` that is of."""
        return {
            "max_abs_diff": self._max,
            "mean_abs_diff": self._sum / max(1, self._count),
            "agreement": self._same / max(1, self._rows),
            "rows": float(self._rows),
        }


def quality(logits: Logits, labels: Sequence[int]) -> dict[str, float]:
    """`accuracy`, `f1` (macro, over the labels that occur or are predicted) and `loss` (mean cross entropy, nats)."""
    truth = np.asarray(labels)
    found = logits.argmax(1)
    exact = logits.astype(np.float64)
    top = exact.max(1, keepdims=True)
    log_total = np.log(np.exp(exact - top).sum(1)) + top[:, 0]
    scores = []
    for label in np.union1d(truth, found):
        hits = int(((truth == label) & (found == label)).sum())
        scores.append(2 * hits / (int((truth == label).sum()) + int((found == label).sum())))
    return {
        "accuracy": float((found == truth).mean()),
        "f1": float(np.mean(scores)),
        "loss": float((log_total - exact[np.arange(len(truth)), truth]).mean()),
    }


def latency_ms(answer: Callable[[str], object], texts: Sequence[str]) -> float:
    """The median time of one text, in milliseconds: up to 64 different texts after a warm-up, within 10 s."""
    for text in texts[:WARM_UP_RUNS]:
        answer(text)
    times = []
    until = time.perf_counter() + TIMED_FOR_S
    for text in texts[:: max(1, len(texts) // TIMED_RUNS)][:TIMED_RUNS]:
        start = time.perf_counter()
        answer(text)
        times.append(time.perf_counter() - start)
        if start > until:
            break
    return median(times) * 1e3
