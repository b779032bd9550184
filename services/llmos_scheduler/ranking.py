"""How nodes are ranked for a task: first fit, best fit, and ours, the least loss of usable GPUs. Lowest cost first.

Costs are coarse integers: equal costs are ties, and ties go to the first node in the cluster's order. That keeps the
later nodes whole, and is worth more than a finer cost (measured: README).
"""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from llmos.errors import Rejected
from llmos_scheduler.cluster import ALL, WHOLE, Cluster, Ints, Mask, Rows, Shape
from llmos_scheduler.demand import SCALE, Demand, Floats

GRAIN = 100  # milli-GPU: losses that differ by less are ties
BLOCK = 1024  # nodes at a time: what they need stays in the processor's cache
NEVER = np.iinfo(np.int32).max
Costs: TypeAlias = npt.NDArray[np.int32]


class Ranking(Protocol):
    """A way to rank nodes. It may keep what it computed of the cluster, but never what it decided.

    `rows` of `costs` is every node, or an array of their numbers.
    """

    def learn(self, counts: Mapping[Shape, int]) -> None:
        """The shapes asked for so far; every cost may change."""

    def costs(self, shape: Shape, rows: Rows = ALL) -> Costs:
        """The cost of placing the shape on each of the nodes, `NEVER` where it does not fit."""

    def devices(self, shape: Shape, node: int) -> list[int]:
        """The GPUs of a node that fits which the shape should get."""


class FirstFit:
    """The first node with room; a shared GPU comes from the fullest device that has enough."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def learn(self, counts: Mapping[Shape, int]) -> None:
        """First fit looks at no other task."""

    def costs(self, shape: Shape, rows: Rows = ALL) -> Costs:
        fit, _ = self.cluster.fitting(shape, rows)
        return np.where(fit, 0, NEVER).astype(np.int32)

    def devices(self, shape: Shape, node: int) -> list[int]:
        _, able = self.cluster.fitting(shape, np.array([node]))
        return fullest(self.cluster, shape, node, able[0])


class BestFit(FirstFit):
    """The node that is left with the least: the sum of what would be free of cpus, memory and GPUs, each as a share of
    the largest node's."""

    def costs(self, shape: Shape, rows: Rows = ALL) -> Costs:
        cluster = self.cluster
        fit, _ = cluster.fitting(shape, rows)
        left = (cluster.cpus[rows] - shape.cpus) / max([1, *(machine.cpus for machine in cluster.kinds)])
        left += (cluster.memory[rows] - shape.memory) / max([1, *(machine.memory for machine in cluster.kinds)])
        left += (cluster.milli[rows].sum(axis=1) - shape.demand) / max(1, cluster.width * WHOLE)
        return np.where(fit, left * (NEVER // 4), NEVER).astype(np.int32)


class Gradient(FirstFit):
    """The node whose worth to the expected tasks falls least, plus the price of scarce hardware; see `demand`."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        self._demand = Demand(cluster, {})
        self._worth = np.zeros(len(cluster))
        self._seen = 0

    def learn(self, counts: Mapping[Shape, int]) -> None:
        cluster = self.cluster
        self._demand = Demand(cluster, counts)
        self._worth = self._demand.worth(cluster.kind, cluster.cpus, cluster.memory, cluster.milli)
        self._seen = len(cluster.changes)

    def _refresh(self) -> None:
        cluster, changed = self.cluster, self.cluster.changes[self._seen :]
        if changed:
            rows = np.array(changed)
            self._worth[rows] = self._demand.worth(
                cluster.kind[rows], cluster.cpus[rows], cluster.memory[rows], cluster.milli[rows]
            )
            self._seen = len(cluster.changes)

    def costs(self, shape: Shape, rows: Rows = ALL) -> Costs:
        if not self._demand.known:
            return super().costs(shape, rows)
        cluster = self.cluster
        self._refresh()
        fit, devices = cluster.fitting(shape, rows)
        costs = np.full(len(fit), NEVER, dtype=np.int32)
        fits = np.flatnonzero(fit)
        price = self._demand.price * (shape.demand * SCALE)
        for start in range(0, len(fits), BLOCK):
            here = fits[start : start + BLOCK]
            nodes = here if isinstance(rows, slice) else rows[here]
            after, _ = self._after(shape, nodes, devices[here])
            loss = self._worth[nodes] - after
            if shape.gpus:
                loss += price[cluster.kind[nodes]]
            costs[here] = np.floor(loss / (GRAIN * SCALE))
        return costs

    def devices(self, shape: Shape, node: int) -> list[int]:
        rows = np.array([node])
        _, able = self.cluster.fitting(shape, rows)
        if self._demand.known and shape.gpus == 1 and shape.milli < WHOLE:
            return [int(self._after(shape, rows, able)[1][0])]
        return fullest(self.cluster, shape, node, able[0])

    def _after(self, shape: Shape, nodes: Ints, devices: Mask) -> tuple[Floats, Ints]:
        cluster = self.cluster
        return self._demand.worth_after(
            shape, cluster.kind[nodes], cluster.cpus[nodes], cluster.memory[nodes], cluster.milli[nodes], devices
        )


def fullest(cluster: Cluster, shape: Shape, node: int, able: Mask) -> list[int]:
    """Of the devices that could serve the shape: the least free milli first, then the least memory, then order."""
    if not shape.gpus:
        return []
    milli, memory = cluster.milli[node], cluster.gpu_memory[node]
    ranked = sorted((int(milli[gpu]), int(memory[gpu]), int(gpu)) for gpu in np.flatnonzero(able))
    return sorted(gpu for _, _, gpu in ranked[: shape.gpus])


RANKINGS: dict[str, type[FirstFit]] = {"gradient": Gradient, "best-fit": BestFit, "first-fit": FirstFit}


def ranking(name: str, cluster: Cluster) -> Ranking:
    """The ranking of that name. Raises `Rejected` with the names that there are."""
    if name not in RANKINGS:
        raise Rejected(f"there is no placement policy {name!r}", remedy=f"Choose one of {', '.join(RANKINGS)}")
    return RANKINGS[name](cluster)
