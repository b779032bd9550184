"""Which running work gives way, and on which nodes, when work that may preempt fits nowhere.

On each node those that lose least give way first, in the order of `Victim.key`, and whoever is not needed after all is
spared; of all nodes, the one whose victims lose least. Gangs are stopped whole; what was asked to stop before, and is
not held for others, counts as free, so that nobody is stopped for what comes free anyway.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from llmos_scheduler.choice import pick_anywhere
from llmos_scheduler.cluster import WHOLE, Mask, Room
from llmos_scheduler.ground import Ground, Spots
from llmos_scheduler.holds import Holds
from llmos_scheduler.ranking import NEVER
from llmos_scheduler.shares import Shares
from llmos_scheduler.work import Reason, Work

LOOKED_AT = 64  # nodes, those whose work loses least


@dataclass(frozen=True, slots=True)
class Victim:
    """Running work that may be stopped. `loss`: what that costs; `key`: the smallest gives way first."""

    work: Work
    reason: Reason
    loss: int
    key: tuple[int, ...]
    owner: str | None = None  # whose quota covers it


Score: TypeAlias = tuple[int, tuple[int, ...], int]
Cleared: TypeAlias = tuple[Spots, list[Victim]]


class RoomMaker:
    """Looks for room for one work that fits nowhere."""

    def __init__(
        self, ground: Ground, holds: Holds, shares: Shares, work: Work, barred: Mask | None, victims: Iterable[Victim]
    ) -> None:
        self.ground, self.holds, self.shares, self.work = ground, holds, shares, work
        self.barred = barred
        self.victims = sorted(victims, key=lambda victim: victim.key)
        self._on: dict[int, list[Victim]] = {}
        for victim in self.victims:
            for row in self._rows_of(victim):
                self._on.setdefault(row, []).append(victim)

    def make(self) -> Cleared | None:
        """The places that will be free, and who is to stop for it; `None` if all together would not do."""
        if not self.work.nodes:
            return self._anywhere()
        if self.work.nodes > 1:
            return self._gang()
        best: tuple[Score, int, Cleared] | None = None
        for row in self._candidates():
            found = self._clear(row, [])
            if found is not None:
                score = self._score(found[1])
                if best is None or (score, row) < best[:2]:
                    best = score, row, (((row, found[0]),), found[1])
        return best[2] if best else None

    def _rows_of(self, victim: Victim) -> list[int]:
        return self.holds.rows_of(victim.work.id)

    def _usable(self, row: int) -> bool:
        held = self.holds.rows.get(row)
        return (
            self.ground.suits(self.work.shape, row)
            and (self.barred is None or not self.barred[row])
            and self.ground.names[row] not in self.work.apart
            and (held is None or not held.head or self.work.latency)
        )

    def _candidates(self) -> list[int]:
        rows = dict.fromkeys(row for id in sorted(self.holds.leaving) for row in self.holds.rows_of(id))
        for victim in self.victims:
            if len(rows) >= max(LOOKED_AT, 4 * self.work.nodes):
                break
            rows |= dict.fromkeys(self._rows_of(victim))
        return [row for row in rows if self._usable(row)]

    def _clear(self, row: int, before: Sequence[Victim]) -> tuple[tuple[int, ...], list[Victim]] | None:
        """The devices that the work gets on the node, and who stops for it beside those who do `before`."""
        shape, able = self.work.shape, self.ground.able(self.work.shape, row)
        room = self.holds.coming(row)
        for victim in before:
            self._move(room, row, victim, 1)
        gpus = room.devices(shape, able)
        chosen: list[Victim] = []
        for victim in self._on.get(row, ()):
            if gpus is not None:
                break
            if victim not in before and self._may_stop(victim, [*before, *chosen]):
                self._move(room, row, victim, 1)
                chosen.append(victim)
                gpus = room.devices(shape, able)
        if gpus is None:
            return None
        for victim in sorted(chosen, key=lambda victim: victim.key, reverse=True):
            self._move(room, row, victim, -1)
            fewer = room.devices(shape, able)
            if fewer is None:
                self._move(room, row, victim, 1)
            else:
                gpus = fewer
                chosen.remove(victim)
        return gpus, chosen

    def _move(self, room: Room, row: int, victim: Victim, sign: int) -> None:
        lease = self.ground.leases[row].get(victim.work.id)
        if lease is not None:
            room.move(self.ground.part(*lease), lease[1], sign)

    def _may_stop(self, victim: Victim, others: Iterable[Victim]) -> bool:
        """Whether a queue that lends out its quota's surplus still has some."""
        if victim.reason != "reclaim":
            return True
        freed = sum(other.work.gpu_milli for other in others if other.owner == victim.owner)
        return self.shares.surplus(victim.owner) - freed > 0

    @staticmethod
    def _score(victims: Sequence[Victim]) -> Score:
        return (
            sum(victim.loss for victim in victims),
            max((victim.key for victim in victims), default=()),
            sum(victim.work.gpu_milli for victim in victims),
        )

    def _gang(self) -> Cleared | None:
        rows = dict.fromkeys(self._candidates())
        costs = self.ground.placer.costs(self.work.shape)
        if costs is not None:
            free = (row for row in np.flatnonzero(costs != NEVER).tolist() if row not in rows and self._usable(row))
            rows |= dict.fromkeys(row for row, _ in zip(free, range(4 * self.work.nodes), strict=False))
        found = [(self._score(cleared[1]), row) for row in rows if (cleared := self._clear(row, [])) is not None]
        if len(found) < self.work.nodes:
            return None
        ranked = np.array([row for _, row in sorted(found)], dtype=np.int64)
        cheapest: tuple[Score, Cleared] | None = None
        for fabric in sorted(set(self.ground.fabric[ranked].tolist())):
            if self.ground.fabrics[fabric]:
                taken = self._take_rows([row for row in ranked.tolist() if self.ground.fabric[row] == fabric])
                if taken is not None and (cheapest is None or self._score(taken[1]) < cheapest[0]):
                    cheapest = self._score(taken[1]), taken
        return cheapest[1] if cheapest else self._take_rows(ranked.tolist())

    def _take_rows(self, rows: Sequence[int]) -> Cleared | None:
        """The first so many nodes that can be cleared one after the other."""
        spots: list[tuple[int, tuple[int, ...]]] = []
        victims: list[Victim] = []
        for row in rows:
            if len(spots) == self.work.nodes:
                break
            cleared = self._clear(row, victims)
            if cleared is not None:
                spots.append((row, cleared[0]))
                victims += cleared[1]
        return (tuple(sorted(spots)), victims) if len(spots) == self.work.nodes else None

    def _anywhere(self) -> Cleared | None:
        shape, free = self.work.shape, dict[int, list[int]]()
        for row in range(len(self.ground.names)):
            if self.ground.cluster.open[row] and (self.barred is None or not self.barred[row]):
                able, room = self.ground.able(shape, row), self.holds.coming(row)
                free[row] = [gpu for gpu, milli in enumerate(room.milli) if able[gpu] and milli == WHOLE]
        missing = shape.gpus - sum(map(len, free.values()))
        chosen: list[tuple[Victim, list[tuple[int, int]]]] = []
        for victim in self.victims:
            if missing <= 0:
                break
            gpus = [
                (row, gpu)
                for row in self._rows_of(victim)
                for gpu in self.ground.leases[row][victim.work.id][1]
                if row in free and self.ground.able(shape, row)[gpu]
            ]
            if gpus and self._may_stop(victim, [other for other, _ in chosen]):
                chosen.append((victim, gpus))
                missing -= len(gpus)
        if missing > 0:
            return None
        for one in sorted(chosen, key=lambda one: one[0].key, reverse=True):
            if missing + len(one[1]) <= 0:
                missing += len(one[1])
                chosen.remove(one)
        for _, gpus in chosen:
            for row, gpu in gpus:
                free[row].append(gpu)
        spots = pick_anywhere({row: sorted(gpus) for row, gpus in free.items() if gpus}, shape.gpus)
        return (spots, [victim for victim, _ in chosen]) if spots is not None else None
