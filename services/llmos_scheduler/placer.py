"""Places shape after shape on a cluster, fast: costs are kept per shape, and only nodes that changed are ranked again.

A shape that fits nowhere is remembered, and only looked at again on nodes that were freed since.
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmos_scheduler.cluster import Cluster, Shape
from llmos_scheduler.ranking import NEVER, Costs, Ranking, ranking

FIRST_LESSON = 16  # tasks seen until the ranking first learns; then whenever they have doubled
KEPT_COSTS = 64 << 20  # costs in all that are kept, of 4 bytes each


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a task goes: number of the node, and its GPUs."""

    node: int
    gpus: tuple[int, ...]


@dataclass(slots=True)
class _Known:
    costs: Costs
    seen: int  # position in the cluster's changes


class Placer:
    """A cluster with a ranking, what it learnt of demand, and its caches. The same calls give the same answers.

    Leases begin and end here. After another change of `cluster` that gives a node more room, call `freed`.
    """

    def __init__(self, cluster: Cluster, policy: str = "gradient") -> None:
        self.cluster = cluster
        self.ranking: Ranking = ranking(policy, cluster)
        self._known: OrderedDict[Shape, _Known] = OrderedDict()
        self._limit = max(16, KEPT_COSTS // max(1, len(cluster)))
        self._failed: dict[Shape, int] = {}  # length of `_freed` when it failed
        self._freed: list[int] = []
        self._asked: Counter[Shape] = Counter()
        self._tasks = 0
        self._next_lesson = FIRST_LESSON

    def learn(self, counts: Mapping[Shape, int]) -> None:
        """These are the tasks to expect, whatever was asked for before."""
        self.ranking.learn(counts)
        self._known.clear()

    def expect(self, counts: Mapping[Shape, int]) -> None:
        """These tasks were asked for (or wait): they count as demand."""
        self._asked.update(counts)
        self._tasks += sum(counts.values())
        if self._tasks >= self._next_lesson:
            self._next_lesson = 2 * self._tasks
            self.ranking.learn(self._asked)
            self._known.clear()

    def place(self, shape: Shape) -> Placement | None:
        """Lease the best node for the shape, or `None` if it fits nowhere."""
        costs = self.costs(shape)
        if costs is None:
            return None
        node = int(costs.argmin())
        gpus = self.ranking.devices(shape, node)
        self.cluster.take(node, shape, gpus)
        return Placement(node, tuple(gpus))

    def costs(self, shape: Shape) -> Costs | None:
        """The cost on every node, `NEVER` where it does not fit now; `None` if it fits nowhere. Not to be changed."""
        if shape in self._failed and not self._may_fit(shape):
            return None
        costs = self._costs(shape)
        if not len(costs) or costs.min() == NEVER:
            self._failed[shape] = len(self._freed)
            return None
        return costs

    def give_back(self, shape: Shape, placement: Placement) -> None:
        """End a lease."""
        self.cluster.give_back(placement.node, shape, placement.gpus)
        self.freed(placement.node)

    def freed(self, node: int) -> None:
        """The node has more room than before."""
        self._freed.append(node)

    def _may_fit(self, shape: Shape) -> bool:
        """Whether a node that was freed since the shape failed has room for it: leases only take from the others."""
        freed = sorted(set(self._freed[self._failed[shape] :]))
        if not freed:
            return False
        rows = np.array(freed)
        costs = self.ranking.costs(shape, rows)
        if costs.min() == NEVER:
            self._failed[shape] = len(self._freed)
            return False
        del self._failed[shape]
        known = self._known.get(shape)
        if known is not None:  # every cost that it knows is `NEVER`, and only these changed
            known.costs[rows] = costs
            known.seen = len(self.cluster.changes)
        return True

    def _costs(self, shape: Shape) -> Costs:
        cluster, known = self.cluster, self._known.get(shape)
        now = len(cluster.changes)
        if known is None or now - known.seen > len(cluster):
            known = self._known[shape] = _Known(self.ranking.costs(shape), now)
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
        elif known.seen < now:
            changed = cluster.changes[known.seen :]
            rows = np.array(changed if len(changed) < 64 else sorted(set(changed)))
            known.costs[rows] = self.ranking.costs(shape, rows)
            known.seen = now
        self._known.move_to_end(shape)
        return known.costs
