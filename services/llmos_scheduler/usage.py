"""What each queue used lately: an average of what it held, in which the past fades (`half_life`). A fold of leases.

Kept by whoever folds the facts, as part of the state; the planner only reads it. It changes at leases only, never by
being read, so that the same leases give the same shares to the last bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import TypeAlias

from llmos_scheduler.cluster import Shape

_LN2 = log(2)
DAY = 24 * 3_600_000
Amounts: TypeAlias = tuple[int, int, int]  # milli-GPU, thousandths of a cpu, memory


def amounts(shape: Shape, nodes: int = 1) -> Amounts:
    """What work of so many nodes of this shape holds in all (`nodes` 0: the shape once)."""
    times = max(1, nodes)
    return shape.demand * times, shape.cpus * times, shape.memory * times


@dataclass(slots=True)
class Use:
    """One leaf queue: what it holds since `at`, and the average until then."""

    held: list[int] = field(default_factory=lambda: [0, 0, 0])
    average: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    at: int = 0


@dataclass(slots=True)
class Usage:
    """By leaf queue. Plain data, so that a snapshot can hold it."""

    half_life: int = DAY
    uses: dict[str, Use] = field(default_factory=dict)

    def change(self, queue: str, of: Sequence[int], now: int, sign: int = 1) -> None:
        """A lease of so much began (1) or ended (-1)."""
        use = self.uses.setdefault(queue, Use(at=now))
        use.average = self._faded(use, now)
        use.at = max(use.at, now)
        for index, amount in enumerate(of):
            use.held[index] += sign * amount

    def averages(self, now: int) -> dict[str, list[float]]:
        """What each leaf held on average, the recent past counting most; in the order of their names."""
        return {name: self._faded(self.uses[name], now) for name in sorted(self.uses)}

    def _faded(self, use: Use, now: int) -> list[float]:
        kept = exp(-_LN2 / self.half_life * max(0, now - use.at))
        return [past * kept + held * (1 - kept) for past, held in zip(use.average, use.held, strict=True)]
