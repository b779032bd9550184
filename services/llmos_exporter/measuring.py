"""Measuring an artifact: how far its answers lie from the model's, and how long one takes."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from llmos_exporter.sources import Numbers

WARM_UP_RUNS = 3
TIMED_RUNS = 64
TIMED_FOR_S = 10.0


class Parity:
    """How far a graph's answers lie from the trained model's, over all rows that were added."""

    def __init__(self, agreement: Callable[[Numbers, Numbers], float]) -> None:
        self._agreement = agreement
        self._max = 0.0
        self._sum = 0.0
        self._count = 0
        self._same = 0.0
        self._rows = 0

    def add(self, wanted: Sequence[Numbers], got: Sequence[Numbers]) -> None:
        """Compare answers row by row. A shape that differs, NaN and infinity are infinitely far."""
        for one, other in zip(wanted, got, strict=True):
            same_shape = one.shape == other.shape
            apart = np.abs(one.astype(np.float64) - other) if same_shape else np.full(one.shape, np.inf)
            apart = np.where(np.isfinite(apart), apart, np.inf)
            self._max = max(self._max, float(apart.max(initial=0.0)))
            self._sum += float(apart.sum())
            self._count += apart.size
            self._same += self._agreement(one, other) if same_shape else 0.0
            self._rows += 1

    def numbers(self) -> dict[str, float]:
        """`max_abs_diff` and `mean_abs_diff` of what the graph gives, `agreement` of answers (0–1), and how many
        `rows` that is of.
        """
        return {
            "max_abs_diff": self._max,
            "mean_abs_diff": self._sum / max(1, self._count),
            "agreement": self._same / max(1, self._rows),
            "rows": float(self._rows),
        }


def same_label(wanted: Numbers, got: Numbers) -> float:
    """The share of places (one, or one a token) whose largest number is the same one."""
    return float((wanted.argmax(-1) == got.argmax(-1)).mean()) if wanted.size else 1.0


def apart(wanted: Sequence[Numbers], got: Sequence[Numbers]) -> float:
    """The largest difference of two lists of answers."""
    return max((float(np.abs(one - other).max(initial=0.0)) for one, other in zip(wanted, got, strict=True)), default=0)


def latency_ms(answer: Callable[[Any], object], rows: Sequence[Any]) -> float:
    """The median time of one row, in milliseconds: up to 64 different rows after a warm-up, within 10 s."""
    for row in rows[:WARM_UP_RUNS]:
        answer(row)
    times = []
    until = time.perf_counter() + TIMED_FOR_S
    for row in rows[:: max(1, len(rows) // TIMED_RUNS)][:TIMED_RUNS]:
        start = time.perf_counter()
        answer(row)
        times.append(time.perf_counter() - start)
        if start > until:
            break
    return median(times) * 1e3
