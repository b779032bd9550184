"""The nodes as the planner knows them: which leases each holds, which are closed, and which are kept for whom."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from llmos_scheduler.cluster import Cluster, Ints, Machine, Mask, Room, Shape
from llmos_scheduler.order import LAST
from llmos_scheduler.placer import Placer
from llmos_scheduler.usage import Amounts
from llmos_scheduler.work import Places, Reservation, Work

Spots: TypeAlias = tuple[tuple[int, tuple[int, ...]], ...]  # places by row instead of name
Lease: TypeAlias = tuple[Work, tuple[int, ...]]

FABRIC = "fabric"  # the label of nodes with a fast network among them
TIDY = 1 << 20  # remembered changes after which caches begin anew


@dataclass(slots=True, eq=False)
class Run:
    """Running work, where, and the rows of that as far as they are known."""

    work: Work
    places: Places
    spots: Spots = ()


class Ground:
    """Nodes in the order given (it breaks ties), the leases on them, and the placer on top.

    `leases` by row and id; leases on nodes that are not known are left out.
    """

    def __init__(self, machines: Mapping[str, Machine], placement: str) -> None:
        self.names = list(machines)
        self.rows = {name: row for row, name in enumerate(self.names)}
        self._placement = placement
        self._counts: Mapping[Shape, int] = {}
        self.cluster = Cluster(machines.values())
        self.placer = Placer(self.cluster, placement)
        self.leases: list[dict[str, Lease]] = [{} for _ in self.names]
        self.freed: dict[int, None] = {}  # rows that have more room since somebody looked
        labels = [machine.labels.get(FABRIC, "") for machine in machines.values()]
        self.fabrics = sorted(set(labels))
        self.fabric: Ints = np.array([self.fabrics.index(label) for label in labels], dtype=np.int64)
        self.totals: Amounts = (
            self.cluster.capacity,
            int(self.cluster.cpus.sum()),
            int(self.cluster.memory.sum()),
        )
        self._able: dict[tuple[frozenset[str], int, int], list[bool]] = {}
        self._holding: dict[Shape, Mask] = {}
        self._enough: dict[tuple[Shape, int], bool] = {}

    def learn(self, counts: Mapping[Shape, int]) -> None:
        self._counts = counts
        self.placer.learn(counts)

    def tidy(self) -> None:
        """Forget old changes, and with them what was computed."""
        if len(self.cluster.changes) > TIDY:
            self.cluster.changes.clear()
            self.placer = Placer(self.cluster, self._placement)
            self.placer.learn(self._counts)

    def spots(self, places: Places) -> Spots:
        return tuple((self.rows[name], gpus) for name, gpus in places if name in self.rows)

    def places(self, spots: Spots) -> Places:
        return tuple((self.names[row], gpus) for row, gpus in spots)

    def take(self, work: Work, spots: Spots) -> None:
        """Count the lease. Other schedulers' facts are facts: nothing is checked."""
        for row, gpus in spots:
            known = tuple(gpu for gpu in gpus if gpu < len(self.cluster.machines[row].devices))
            self.cluster.move(row, self.part(work, known), known, -1)
            self.leases[row][work.id] = (work, known)

    def keep(self, work: Work, spots: Spots) -> None:
        """The lease was counted already, by a plan."""
        for row, gpus in spots:
            self.leases[row][work.id] = (work, gpus)

    def give_back(self, work: Work, spots: Spots) -> None:
        """The lease is over."""
        for row, _ in spots:
            lease = self.leases[row].pop(work.id, None)
            if lease is not None:
                self.cluster.move(row, self.part(work, lease[1]), lease[1], 1)
                self.free(row)

    def free(self, row: int) -> None:
        """The node has more room than before."""
        self.placer.freed(row)
        self.freed[row] = None

    def close(self, row: int, closed: bool) -> None:
        self.cluster.cordon(row, closed)
        self._enough.clear()
        if not closed:
            self.free(row)

    @staticmethod
    def part(work: Work, gpus: Sequence[int]) -> Shape:
        """What the work holds on a node on which it has these GPUs."""
        return work.shape if work.nodes else Shape(gpus=len(gpus))

    def able(self, shape: Shape, row: int) -> list[bool]:
        """Which of the node's devices are of a model and size that will do."""
        key = shape.models, shape.gpu_memory, int(self.cluster.kind[row])
        able = self._able.get(key)
        if able is None:
            able = self._able[key] = self.cluster.allowed(shape)[key[2]].tolist()
        return able

    def suits(self, shape: Shape, row: int) -> bool:
        """Whether the node is open and could hold the shape if it were empty."""
        return bool(self.holding(shape)[row] and self.cluster.open[row])

    def enough(self, shape: Shape, nodes: int) -> bool:
        """Whether as many open nodes could hold the shape if they were empty."""
        key = shape, nodes
        if key not in self._enough:
            self._enough[key] = int((self.holding(shape) & self.cluster.open).sum()) >= nodes
        return self._enough[key]

    def kinds(self, shape: Shape, nodes: int) -> Mask:
        """Which kinds of nodes could hold the shape if they were empty; for `nodes` 0, one of its GPUs."""
        cluster, least = self.cluster, shape.gpus if nodes else min(1, shape.gpus)
        return np.array(
            [
                machine.cpus >= shape.cpus
                and machine.memory >= shape.memory
                and int(cluster.allowed(shape)[kind].sum()) >= least
                for kind, machine in enumerate(cluster.kinds)
            ],
            dtype=np.bool_,
        )

    def holding(self, shape: Shape) -> Mask:
        """Which nodes could hold the shape if they were empty, closed ones too."""
        mask = self._holding.get(shape)
        if mask is None:
            cluster = self.cluster
            mask = self.kinds(shape, 1)[cluster.kind] if len(cluster) else np.zeros(0, dtype=np.bool_)
            if shape.labels:
                mask = mask & cluster.labelled(shape.labels)
            self._holding[shape] = mask
        return mask

    def idle(self, rows: Ints) -> Mask:
        """Which of the nodes hold nothing."""
        return np.array([not self.leases[row] for row in rows.tolist()], dtype=np.bool_)

    def room(self, row: int) -> Room:
        return Room.of(self.cluster, row)

    def label(self, row: int, key: str) -> str:
        return self.cluster.machines[row].labels.get(key, "")


class Access:
    """Which nodes are kept for others: reservations, and what they mean at a time."""

    def __init__(self) -> None:
        self.reservations: dict[str, Reservation] = {}
        self._masks: dict[object, Mask | None] = {}
        self._at = -1  # boundaries passed

    def key(self, work: Work, path: Iterable[str]) -> tuple[bool, ...]:
        """What decides which reservations concern the work."""
        if not self.reservations:
            return ()
        above = list(path)
        admits = (self.reservations[name].admits(above, work.tenant) for name in sorted(self.reservations))
        return (work.preemptible, *admits)

    def boundaries(self) -> list[int]:
        """The times at which a reservation begins or ends."""
        ends = [one.end for one in self.reservations.values() if one.end is not None]
        return sorted({*ends, *(one.start for one in self.reservations.values())})

    def advance(self, now: int) -> bool:
        """Whether a reservation began or ended since the last look."""
        passed = sum(time <= now for time in self.boundaries())
        if passed == self._at:
            return False
        self._at = passed
        self._masks.clear()
        return True

    def changed(self) -> None:
        self._at = -1
        self._masks.clear()

    def barred(self, ground: Ground, key: tuple[bool, ...], now: int) -> Mask | None:
        """The nodes that work of this key may not use; `None`: none are kept from it.

        Before a reservation begins, work that can be preempted may use its nodes, other work only if it is known to end
        in time (`until`).
        """
        if not key:
            return None
        if key not in self._masks:
            mask = np.zeros(len(ground.names), dtype=np.bool_)
            for one, admitted in zip(self._ordered(), key[1:], strict=True):
                over = one.end is not None and one.end <= now
                if not admitted and not over and (one.start <= now or not key[0]):
                    mask[[ground.rows[name] for name in sorted(one.nodes) if name in ground.rows]] = True
            self._masks[key] = mask if mask.any() else None
        return self._masks[key]

    def until(self, ground: Ground, now: int) -> dict[int, int]:
        """Rows that are free of reservations now, but not later → when the first begins."""
        found: dict[int, int] = {}
        for one in self._ordered():
            if one.start > now:
                for name in one.nodes & ground.rows.keys():
                    row = ground.rows[name]
                    found[row] = min(found.get(row, LAST), one.start)
        now_kept = {
            ground.rows[name]
            for one in self._ordered()
            if one.start <= now and (one.end is None or now < one.end)
            for name in one.nodes & ground.rows.keys()
        }
        return {row: found[row] for row in sorted(found.keys() - now_kept)}

    def claims(self, ground: Ground, key: tuple[bool, ...], now: int) -> set[int]:
        """Rows that are reserved now for work of this key."""
        if not key:
            return set()
        return {
            ground.rows[name]
            for one, admitted in zip(self._ordered(), key[1:], strict=True)
            if admitted and one.start <= now and (one.end is None or now < one.end)
            for name in one.nodes & ground.rows.keys()
        }

    def _ordered(self) -> list[Reservation]:
        return [self.reservations[name] for name in sorted(self.reservations)]
