"""Who gets the next node: what each queue holds and held, its quota, its limit, its dominant share.

Dominant resource fairness: Ghodsi et al., NSDI 2011, over milli-GPU, cpus and memory, with a history that fades
(`usage`). A queue's name is its path, `research/vision`; every queue on the way is part of the tree, listed or not.
"""

from collections.abc import Iterable, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import TypeAlias

from llmos_scheduler.cluster import WHOLE
from llmos_scheduler.queues import Queue
from llmos_scheduler.usage import Amounts

Turn: TypeAlias = tuple[bool | float | str, ...]  # when a queue is served; the smallest first


class Shares:
    """The tree of queues with what runs in it (`charge`). Quotas and limits are compared in milli-GPU.

    `offer` names a leaf with the size of its candidate, `pick` says which leaf is served next.
    """

    def __init__(self, queues: Iterable[Queue], totals: Amounts) -> None:
        self.totals = totals
        self.queues = {"": Queue("")}
        self.used: dict[str, list[int]] = {"": [0, 0, 0]}
        self._past: dict[str, list[float]] = {}
        self._paths: dict[str, list[str]] = {}
        self._offers: dict[str, int] = {}
        self._turns: list[tuple[Turn, str]] = []
        for queue in queues:
            self.add(queue.name)
            self.queues[queue.name] = queue

    def add(self, name: str) -> list[str]:
        """Make the queue known; returns its path: itself first, the root last."""
        path = self._paths.get(name)
        if path is None:
            parts = name.split("/") if name else []
            path = self._paths[name] = ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]
            for above in path:
                self.queues.setdefault(above, Queue(above))
                self.used.setdefault(above, [0, 0, 0])
        return path

    def charge(self, name: str, of: Amounts, sign: int = 1) -> None:
        """Count work against its queue and all above it, or take it off (-1)."""
        for above in self.add(name):
            held = self.used[above]
            held[0] += sign * of[0]
            held[1] += sign * of[1]
            held[2] += sign * of[2]
        if sign < 0 and self._turns:  # turns may only come later, not earlier
            self._turns = [(self._turn(leaf), leaf) for leaf in self._offers]
            heapify(self._turns)

    def owner(self, name: str) -> str | None:
        """The queue whose quota covers this one: itself, or the nearest above that has a quota."""
        return next((above for above in self.add(name) if self.queues[above].quota is not None), None)

    def surplus(self, owner: str | None) -> float:
        """milli-GPU that are held above the quota; without a quota all of it is borrowed."""
        return float("inf") if owner is None else self.used[owner][0] - (self.queues[owner].quota or 0) * WHOLE

    def entitled(self, name: str, milli: int) -> bool:
        """Whether so much more is within the quota that covers the queue."""
        owner = self.owner(name)
        return owner is not None and self.surplus(owner) + milli <= 0

    def limited(self, name: str, milli: int) -> str | None:
        """The queue on the path whose limit so much more would break, if any."""
        for above in self.add(name):
            limit = self.queues[above].limit
            if limit is not None and milli and self.used[above][0] + milli > limit * WHOLE:
                return above
        return None

    def possible(self, name: str, milli: int) -> bool:
        """Whether the limits could ever allow work of this size."""
        limits = (self.queues[above].limit for above in self.add(name))
        return not milli or all(limit is None or milli <= limit * WHOLE for limit in limits)

    # --- turns ---

    def begin(self, averages: Mapping[str, Sequence[float]]) -> None:
        """Begin another plan. `averages`: what each leaf held lately."""
        self._offers, self._turns, self._past = {}, [], {}
        for name, amounts in averages.items():
            for above in self.add(name):
                sums = self._past.setdefault(above, [0.0, 0.0, 0.0])
                for index, amount in enumerate(amounts):
                    sums[index] += amount

    def offer(self, name: str, milli: int) -> None:
        """The leaf has a candidate of this size; it replaces the one before."""
        new = name not in self._offers
        self._offers[name] = milli
        if new:
            heappush(self._turns, (self._turn(name), name))

    def withdraw(self, name: str) -> None:
        """The leaf has no candidate."""
        self._offers.pop(name, None)

    def pick(self) -> str | None:
        """The leaf that is served next: candidates within their quota before those that borrow, then from the root down
        the least dominant share (held now + recent average) for its weight, then by name. `None` if nobody offers."""
        if len(self._offers) == 1:
            return next(iter(self._offers))
        while self._turns:
            turn, name = self._turns[0]
            if name in self._offers:
                now = self._turn(name)
                if now == turn:
                    return name
                heappop(self._turns)
                heappush(self._turns, (now, name))
            else:
                heappop(self._turns)
        return None

    def share(self, name: str) -> float:
        """The queue's dominant share of the cluster for its weight: what it holds, and what it held on average."""
        past = self._past.get(name, (0.0, 0.0, 0.0))
        sums = zip(self.used[name], past, self.totals, strict=True)
        return max((now + before) / total if total else 0.0 for now, before, total in sums) / self.queues[name].weight

    def _turn(self, name: str) -> Turn:
        turn: list[bool | float | str] = [not self.entitled(name, self._offers[name])]
        for above in reversed(self.add(name)[:-1]):
            turn += (self.share(above), above)
        return (*turn, -1.0)  # work of a queue itself goes before that of the queues below it
