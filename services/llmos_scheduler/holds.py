"""Room that is kept for work which can't start yet, while one plan is made: what a preemption frees, and the
reservation of the first that waits (EASY, Lifka 1995), on its nodes.

A held node shows others only what will be left over; `Holds.lift` shows again what is there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from llmos_scheduler.choice import pick_anywhere, pick_fabric
from llmos_scheduler.cluster import WHOLE, Ints, Mask, Room, Shape
from llmos_scheduler.ground import Ground, Lease, Run, Spots
from llmos_scheduler.order import LAST
from llmos_scheduler.work import Work

LOOKED_AT = 32  # nodes that are looked at closely to find the first that comes free


@dataclass(slots=True)
class Held:
    """A node. `true` is what is free, `left` what is or will be there beyond what is held; `shown` the lesser of both,
    and never more than before: what failed on the node in this plan would fail again.

    `until`: who ends by then may use all that is free (0: nobody). `owner` holds it; `head`: as the first of its queue
    that waits, and not for what a preemption freed.
    """

    true: Room
    left: Room
    shown: Room
    until: int
    owner: Work
    head: bool


class Holds:
    """The held nodes of one plan. `leaving` are the running works that were asked to stop."""

    def __init__(self, ground: Ground, running: Mapping[str, Run], leaving: Iterable[str]) -> None:
        self.ground = ground
        self.running = running
        self.leaving = set(leaving)
        self.rows: dict[int, Held] = {}

    def rows_of(self, id: str) -> list[int]:
        """The nodes on which the running work has a lease."""
        return [row for row, _ in self.running[id].spots]

    def coming(self, row: int) -> Room:
        """What the node has, counting what was asked to stop as free, less what is held for others."""
        held = self.rows.get(row)
        if held is not None and not held.head:
            return held.left.copy()
        room = self.ground.room(row) if held is None else held.true.copy()
        for lease in self._leaving_on(row):
            room.move(self.ground.part(*lease), lease[1], 1)
        return room

    def promise(self, work: Work, spots: Spots) -> None:
        """Hold what was asked to stop, and what is free, for the work: it starts when all of it is free."""
        for row, gpus in spots:
            held = self.rows.get(row)
            if held is None or held.head:
                room = self.ground.room(row)
                true = room.copy() if held is None else held.true
                held = self.rows[row] = Held(true, self.coming(row), room, 0, work, False)
            held.left.move(self.ground.part(work, gpus), gpus, -1)
            self._show(row)

    def stop(self, work: Work) -> None:
        """The running work is asked to stop; what it has comes free on held nodes too."""
        self.leaving.add(work.id)
        for row, held in self.rows.items():
            lease = self.ground.leases[row].get(work.id)
            if lease is not None:
                held.left.move(self.ground.part(*lease), lease[1], 1)

    def reserve(self, work: Work, spots: Spots, at: int) -> None:
        """Hold the places for the work from `at` on, when they will be free (`LAST`: unknown): what is free of them."""
        for row, gpus in spots:
            true = self.ground.room(row)
            part = self.ground.part(work, gpus)
            left = true.copy()
            if at != LAST:
                for lease in self.ground.leases[row].values():
                    if end_of(lease[0]) <= at or lease[0].id in self.leaving:
                        left.move(self.ground.part(*lease), lease[1], 1)
            left.move(part, gpus, -1)
            self.rows[row] = Held(true, left, true.copy(), 0 if at == LAST else at, work, True)
            self._show(row)

    def take(self, row: int, shape: Shape, gpus: Sequence[int], end: int) -> bool:
        """Work that will end at `end` starts on the node; `False` if the node is not held: nothing was done."""
        held = self.rows.get(row)
        if held is None:
            return False
        held.true.move(shape, gpus, -1)
        if not (held.until and end <= held.until):
            held.left.move(shape, gpus, -1)
            held.shown.move(shape, gpus, -1)
        self._show(row)
        return True

    def hidden(self, row: int, work: Work, gpus: tuple[int, ...], end: int) -> tuple[int, ...]:
        """The devices for work that ends at `end`: if in time, those that are kept for the first that waits, so that
        others can have the rest."""
        held = self.rows.get(row)
        if held is None or not held.until or end > held.until or work.nodes != 1:
            return gpus
        kept = [
            gpu for gpu, (true, left) in enumerate(zip(held.true.milli, held.left.milli, strict=True)) if left < true
        ]
        return held.true.devices(work.shape, self.ground.able(work.shape, row), kept) or gpus

    def lift(self) -> None:
        """Show again what is free."""
        for row, held in self.rows.items():
            self.ground.cluster.put(row, held.true)
            self.ground.free(row)
        self.rows.clear()

    def _show(self, row: int) -> None:
        held = self.rows[row]
        held.shown = held.shown.least(held.true).least(held.left)
        self.ground.cluster.put(row, held.shown)

    def _leaving_on(self, row: int) -> list[Lease]:
        return [lease for id, lease in self.ground.leases[row].items() if id in self.leaving]


def end_of(work: Work) -> int:
    """When running work is expected to end, by its duration; `LAST` if nobody knows."""
    return LAST if work.duration is None else work.since + max(0, work.duration - work.done)


def possible(ground: Ground, work: Work, barred: Mask | None, taken: Iterable[int] = ()) -> Mask | None:
    """The open nodes that could hold the work (a member of it, for a gang) if they were empty; `None`: too few."""
    could: Mask = ground.holding(work.shape) & ground.cluster.open if work.nodes else ground.cluster.open.copy()
    if barred is not None:
        could = could & ~barred
    for row in [*taken, *(ground.rows[name] for name in work.apart if name in ground.rows)]:
        could[row] = False
    if not work.nodes:
        devices = int((ground.cluster.allowed(work.shape)[ground.cluster.kind] & could[:, None]).sum())
        return could if devices >= work.shape.gpus else None
    return could if int(could.sum()) >= work.nodes else None


def soonest(
    ground: Ground, work: Work, barred: Mask | None, taken: Iterable[int], leaving: set[str], now: int
) -> tuple[int, Spots] | None:
    """When the work can start at the latest, if what runs ends as expected and nothing else starts, and where.

    The time is `LAST` if it is unknown; then these are the nodes that lack least, with the devices that are free now.
    `None` if no node could ever hold it. Looks closely at the nodes that lack least only.
    """
    could = possible(ground, work, barred, taken)
    if could is None:
        return None
    rows = np.flatnonzero(could)
    if not work.nodes:
        return _soonest_anywhere(ground, work, rows, leaving, now)
    near = rows[np.argsort(lacking(ground, work.shape, rows), kind="stable")[: max(LOOKED_AT, 2 * work.nodes)]]
    found = [(*_free_at(ground, work.shape, row, leaving, now), rank, row) for rank, row in enumerate(near.tolist())]
    found.sort(key=lambda one: (one[0], one[2]))
    if work.nodes == 1:
        at, gpus, _, row = found[0]
        return at, ((row, gpus),)
    ranked = np.array([row for *_, row in found], dtype=np.int64)
    chosen = set(pick_fabric(ground, ranked, work.nodes, np.zeros(len(ranked), dtype=np.bool_)))
    members = [one for one in found if one[3] in chosen]
    return max(at for at, *_ in members), tuple(sorted((row, gpus) for _, gpus, _, row in members))


def lacking(ground: Ground, shape: Shape, rows: Ints) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """How much of the shape the nodes lack, in shares of it."""
    cluster = ground.cluster
    lacks = np.maximum(0, shape.cpus - cluster.cpus[rows]) / max(1, shape.cpus)
    lacks += np.maximum(0, shape.memory - cluster.memory[rows]) / max(1, shape.memory)
    if shape.gpus:
        devices = (cluster.milli[rows] >= shape.milli) & cluster.allowed(shape)[cluster.kind[rows]]
        devices &= cluster.gpu_memory[rows] >= shape.gpu_memory
        lacks += 4 * np.maximum(0, shape.gpus - devices.sum(axis=1)) / shape.gpus
    return lacks


def _free_at(ground: Ground, shape: Shape, row: int, leaving: set[str], now: int) -> tuple[int, tuple[int, ...]]:
    """When the node can hold the shape, and the devices: the latest to come free, so that others can use the rest; if
    nobody knows when, those that are free now."""
    room, able = ground.room(row), ground.able(shape, row)
    free = room.devices(Shape(gpus=0), able)
    ends = sorted(
        (now if work.id in leaving else max(now, end_of(work)), work.number, work.id, gpus)
        for work, gpus in ground.leases[row].values()
    )
    gpus_ = room.devices(shape, able)
    late: list[int] = []
    for index, (end, _, id, gpus) in enumerate(ends):
        if gpus_ is not None:
            break
        if end == LAST:
            now_free = [gpu for gpu, milli in enumerate(room.milli) if able[gpu] and milli >= shape.milli]
            return LAST, tuple(now_free[: shape.gpus])
        room.move(ground.part(ground.leases[row][id][0], gpus), gpus, 1)
        late = [*gpus, *late]
        if index + 1 == len(ends) or ends[index + 1][0] > end:
            gpus_ = room.devices(shape, able, late)
            if gpus_ is not None:
                return end, gpus_
    return (now, gpus_) if gpus_ is not None else (LAST, free or ())


def _soonest_anywhere(ground: Ground, work: Work, rows: Ints, leaving: set[str], now: int) -> tuple[int, Spots] | None:
    shape = work.shape
    rooms = {row: ground.room(row) for row in rows.tolist()}
    ables = {row: ground.able(shape, row) for row in rooms}
    ends: list[tuple[int, int, int, str]] = []
    if sum(map(sum, ables.values())) < shape.gpus:
        return None
    for row in rooms:
        for other, _ in ground.leases[row].values():
            end = now if other.id in leaving else max(now, end_of(other))
            ends.append((end, other.number, row, other.id))
    free = {row: _whole(room, ables[row]) for row, room in rooms.items()}
    ends.sort()
    for index, (end, _, row, id) in enumerate(ends):
        if end == LAST:
            break
        other, gpus = ground.leases[row][id]
        rooms[row].move(ground.part(other, gpus), gpus, 1)
        if index + 1 == len(ends) or ends[index + 1][0] > end:
            then = {row: _whole(room, ables[row]) for row, room in rooms.items()}
            late = {row: sorted(gpus, key=lambda gpu: (gpu in free[row], gpu)) for row, gpus in then.items() if gpus}
            spots = pick_anywhere(late, shape.gpus)
            if spots is not None:
                return end, tuple((row, tuple(sorted(gpus))) for row, gpus in spots)
    return LAST, tuple((row, tuple(gpus)) for row, gpus in free.items() if gpus)


def _whole(room: Room, able: Sequence[bool]) -> list[int]:
    return [gpu for gpu, milli in enumerate(room.milli) if able[gpu] and milli == WHOLE]
