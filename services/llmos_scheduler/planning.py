"""How one plan is made: queues take turns (`shares`), each serves its own work by rank (`waiting`).

The best-ranked work of the queue whose turn it is gets free places, or room is made for it by preemption, or it waits:
the first of a queue that must wait holds a reservation, which later work may use only as far as it delays nothing.
"""

from collections.abc import Iterable, Mapping
from heapq import heappush
from itertools import chain

import numpy as np

from llmos_scheduler.choice import choose
from llmos_scheduler.cluster import Mask, Room
from llmos_scheduler.cursor import Cursor
from llmos_scheduler.ground import Spots
from llmos_scheduler.holds import Holds, possible, soonest
from llmos_scheduler.law import Facts, Law
from llmos_scheduler.order import LAST, Order, area
from llmos_scheduler.room import RoomMaker
from llmos_scheduler.usage import amounts
from llmos_scheduler.waiting import Entry, Group, Line
from llmos_scheduler.work import Start, Stop, Work

MOST_RESERVATIONS = 8  # of first ones that wait, each of another queue
SCANNED = 64  # work of one group that is looked at to fill a reservation's time


class Planning:
    """One plan in the making. `taken`: its tentative leases; `popped`: entries that were taken out of the lines."""

    def __init__(self, facts: Facts, now: int) -> None:
        self.facts, self.now = facts, now
        self.ground, self.shares = facts.ground, facts.shares
        self.holds = Holds(facts.ground, facts.running, facts.leaving)
        self.law = Law(facts, self.holds, now)
        self.starts: list[Start] = []
        self.stops: list[Stop] = []
        self.taken: list[tuple[Entry, Spots]] = []
        self.popped: list[Entry] = []
        self.promised: dict[str, Work] = {}  # work for which room is being made
        self.heads: dict[str, tuple[int, Work]] = {}  # line → when its first can start, and who it is
        self.more = False
        self.retry = LAST  # when time alone may have changed the plan
        self._cursors: dict[str, Cursor] = {}
        self._families: dict[str, list[int]] = {}  # where work of a family goes by this plan
        self._rooms: dict[int, Room] = {}  # of nodes that woke groups
        self.aside: list[Group] = []  # groups that a limit or their siblings keep back
        self._shut: dict[str, Work] = {}  # limited queues in which one has waited too long to be passed

    # --- the loop ---

    def make(self, roomed: Iterable[Entry], limit: int) -> None:
        """Plan; `more` says whether the limit was reached."""
        self._cursors = {name: Cursor(line) for name, line in self.facts.lines.items() if line.groups}
        self._keep_rooms(roomed)
        for name, cursor in self._cursors.items():
            self._open(name, cursor)
        while True:
            turn = self.shares.pick()
            if turn is None:
                return
            cursor = self._cursors[turn]
            if cursor.short:
                self._fill(cursor, limit)
                self.shares.withdraw(turn)
                continue
            entry = cursor.next()
            if entry is not None:
                self._serve(cursor, entry)
                if len(self.starts) >= limit:
                    self.more = True
                    return
            self._offer(turn, cursor)

    def close(self) -> None:
        """Leave everything as it was, but for what `taken` says."""
        self.holds.lift()
        for group in self.aside:
            group.asleep = False
            group.line.show(group)
        for cursor in self._cursors.values():
            for item in cursor.stash:
                heappush(cursor.line.asleep, item)
        started = {id(entry) for entry, _ in self.taken}
        for entry in self.popped:
            if id(entry) not in started:
                entry.group.line.put_back(entry)
        for work in self.promised.values():
            self._charge(work, -1)
        for stop in self.stops:
            self._charge(stop.work, 1)

    def _charge(self, work: Work, sign: int) -> None:
        self.shares.charge(work.queue, amounts(work.shape, work.nodes), sign)

    def _open(self, name: str, cursor: Cursor) -> None:
        cursor.preempts = self.law.may_preempt(cursor.line)
        self._offer(name, cursor)

    def _offer(self, name: str, cursor: Cursor) -> None:
        entry = self._next(cursor)
        if entry is not None:
            self.shares.offer(name, entry.work.gpu_milli)
        elif not cursor.short and not cursor.closed and (self.holds.rows or self.facts.access.reservations):
            cursor.short = True
            self.shares.offer(name, 0)
        else:
            self.shares.withdraw(name)

    def _next(self, cursor: Cursor) -> Entry | None:
        """Who is next. Those that nothing is left for, and that can hold no reservation, sleep on without a turn."""
        entry = cursor.next()
        while entry is not None and not entry.group.asleep and not self._might_fit(entry.group):
            if cursor.blocked is None or (cursor.preempts and not cursor.narrow):
                break
            self._sleep(entry.group)
            entry = cursor.next()
        return entry

    def _serve(self, cursor: Cursor, entry: Entry) -> None:
        work, group = entry.work, entry.group
        if not group.asleep and not self._might_fit(group):
            self._sleep(group)
            if cursor.blocked is not None and (cursor.narrow or not cursor.preempts):
                return
        if group.asleep:
            cursor.seen.add(id(group))
        if work.id in self.promised:
            self._pop(entry)
            return
        limited = self._limited(work)
        if limited is not None:
            self._pass_limited(cursor, entry, limited)
            return
        if not group.asleep:
            spots = choose(self.ground, work, self._barred(work))
            if spots is not None:
                self._start(entry, spots)
                return
            if work.family in self._families:
                self._set_aside(group)
                group.line.show(group)
            else:
                self._sleep(group)
            if cursor.narrow:
                return
            cursor.seen.add(id(group))
        if self._make_room(cursor, entry):
            cursor.seen.discard(id(group))
            self._pop(entry)
        else:
            self._block(cursor, work, group)

    def _sleep(self, group: Group) -> None:
        """The group fits nowhere."""
        self.facts.sleepers.add(group)
        group.line.show(group)

    def _might_fit(self, group: Group) -> bool:
        """Whether any of the nodes that woke the group may still have room: no others have."""
        if group.by is None:
            return True
        shape = group.shape
        for row in group.by:
            room = self._rooms.get(row)
            if room is None:
                room = self._rooms[row] = self.ground.room(row)
            if (
                room.cpus >= shape.cpus
                and room.memory >= shape.memory
                and (not shape.gpus or sum(milli >= shape.milli for milli in room.milli) >= shape.gpus)
            ):
                return True
        return False

    def _barred(self, work: Work) -> Mask | None:
        access = self.facts.access
        barred = access.barred(self.ground, self.law.access_key(work), self.now) if access.reservations else None
        siblings = self._families.get(work.family)
        if not siblings:
            return barred
        mask = np.zeros(len(self.ground.names), dtype=np.bool_) if barred is None else barred.copy()
        mask[siblings] = True
        return mask

    def _start(self, entry: Entry, spots: Spots) -> None:
        work = entry.work
        end = LAST if (left := work.remaining(self.now)) is None else self.now + left
        spots = tuple((row, self.holds.hidden(row, work, gpus, end)) for row, gpus in spots)
        for row, gpus in spots:
            self._rooms.pop(row, None)
            part = self.ground.part(work, gpus)
            if not self.holds.take(row, part, gpus, end):
                self.ground.cluster.move(row, part, gpus, -1)
        self._meet(work, spots)
        self.starts.append(Start(work, self.ground.places(spots)))
        self.taken.append((entry, spots))
        self._pop(entry)

    def _pop(self, entry: Entry) -> None:
        entry.group.line.take_out(entry)
        self.popped.append(entry)

    # --- limits ---

    def _limited(self, work: Work) -> str | None:
        for above in self._shut and self.shares.add(work.queue):
            if above in self._shut and work.gpu_milli:
                return above
        return self.shares.limited(work.queue, work.gpu_milli)

    def _pass_limited(self, cursor: Cursor, entry: Entry, limited: str) -> None:
        """Others may pass what a limit keeps back for `hold`; then they wait as well, until it fits."""
        work, group = entry.work, entry.group
        if cursor.blocked is None and self.shares.possible(work.queue, work.gpu_milli):
            if work.wait(self.now) >= self.facts.rules.hold:
                self._shut.setdefault(limited, work)
            else:
                self.retry = min(self.retry, work.since + self.facts.rules.hold)
            cursor.closed = not cursor.line.order.skips
        cursor.seen.add(id(group))  # all of it asks for as much
        self._set_aside(group)

    def _set_aside(self, group: Group) -> None:
        """Look no more at the group in this plan."""
        if not group.asleep:
            group.asleep = True
            self.aside.append(group)

    # --- those that wait ---

    def _block(self, cursor: Cursor, work: Work, group: Group) -> None:
        """The work can't start: the first of its line to do so holds a reservation."""
        if cursor.blocked is not None:
            return
        order = cursor.line.order
        if order.preempts == "rank" and (cursor.served or self.law.outranks(cursor.line, work)):
            return
        barred = self._barred(work)
        if not self.ground.enough(work.shape, work.nodes) or possible(self.ground, work, barred) is None:
            return
        cursor.blocked = work
        cursor.closed = not order.skips
        if len(self.heads) == MOST_RESERVATIONS:
            return
        found = soonest(self.ground, work, barred, self.holds.rows, self.holds.leaving, self.now)
        if found is not None:
            at, spots = found
            hold = work.since + self.facts.rules.hold
            if at == LAST and hold > self.now:
                self.retry = min(self.retry, hold)
            else:
                self.heads[cursor.line.name] = at, work
                self.holds.reserve(work, spots, at)
                self._rooms.clear()

    def _fill(self, cursor: Cursor, limit: int) -> None:
        """Start what ends before the reservation of the node on which it fits."""
        order = cursor.line.order
        untils = {row: held.until for row, held in self.holds.rows.items() if held.until}
        kept = self.facts.access.until(self.ground, self.now)
        spared = self._spared(cursor.line)
        found: list[tuple[tuple[int, ...], str, int, Entry]] = []
        for row in [*untils, *(row for row in kept if row not in self.holds.rows)]:
            room = self.holds.rows[row].true if row in untils else self.ground.room(row)
            until = min(untils.get(row, LAST), kept.get(row, LAST))
            groups = self.facts.sleepers.fitting(int(self.ground.cluster.kind[row]), room)
            asleep = [group.first(SCANNED) for group in groups if group.line is cursor.line and group.nodes == 1]
            for entry in chain(spared, *asleep):
                left = entry.work.remaining(self.now)
                if left is not None and self.now + left <= until:
                    found.append((filling(order, entry), entry.work.id, row, entry))
        started: set[str] = set()
        for _, id, row, entry in sorted(found, key=lambda one: one[:3]):
            work = entry.work
            if id in started or not self.ground.suits(work.shape, row):
                continue
            if id not in self.promised and self._limited(work) is not None:
                continue
            if self.ground.names[row] in work.apart or not self._may_fill(work, row, kept):
                continue
            held = self.holds.rows.get(row)
            room = held.true if held is not None else self.ground.room(row)
            gpus = room.devices(work.shape, self.ground.able(work.shape, row))
            if gpus is not None and len(self.starts) < limit:
                started.add(id)
                if id in self.promised:
                    self._charge(self.promised.pop(id), -1)
                self._start(entry, ((row, gpus),))

    def _spared(self, line: Line) -> list[Entry]:
        """Work for which room comes free, though it stops nobody in this plan: it need not wait for that."""
        ids = self.promised.keys() - {stop.by.id for stop in self.stops}
        ours = [entry for entry in self.popped if entry.group.line is line and entry.group.nodes == 1]
        return [entry for entry in ours if entry.work.id in ids]

    def _may_fill(self, work: Work, row: int, kept: Mapping[int, int]) -> bool:
        barred = self._barred(work)
        return barred is None or not barred[row] or row in kept

    # --- preemption ---

    def _keep_rooms(self, roomed: Iterable[Entry]) -> None:
        """Work for which others were stopped comes first: it starts, or what is there and what comes is held for it."""
        for entry in sorted(roomed, key=lambda entry: (entry.work.since, entry.work.number, entry.work.id)):
            work = entry.work
            if self._limited(work) is not None:
                continue
            barred = self._barred(work)
            spots = choose(self.ground, work, barred, work.room) or choose(self.ground, work, barred)
            if spots is not None:
                self._start(entry, spots)
                continue
            cleared = RoomMaker(self.ground, self.holds, self.shares, work, barred, ()).make()
            if cleared is not None:
                self._promise(work, cleared[0])
                self._pop(entry)

    def _promise(self, work: Work, spots: Spots) -> None:
        self.promised[work.id] = work
        self.holds.promise(work, spots)
        self._rooms.clear()
        self._meet(work, spots)

    def _meet(self, work: Work, spots: Spots) -> None:
        """The work has got, or will get, what it asks for."""
        self._charge(work, 1)
        self._cursors[work.queue].served = True
        if work.family:
            self._families.setdefault(work.family, []).extend(row for row, _ in spots)

    def _make_room(self, cursor: Cursor, entry: Entry) -> bool:
        """Hold for the work what comes free, and ask others to give way if policy allows and it helps."""
        work = entry.work
        if not cursor.preempts:
            return False
        barred = self._barred(work)
        victims = {victim.work.id: victim for victim in self.law.victims(cursor.line, work)}
        if not victims and not self.holds.leaving:
            return False
        cleared = RoomMaker(self.ground, self.holds, self.shares, work, barred, victims.values()).make()
        if cleared is None:
            return False
        spots, chosen = cleared
        for victim in chosen:
            self.holds.stop(victim.work)
            self._charge(victim.work, -1)
            self.stops.append(Stop(victim.work, work, victim.reason))
        self._promise(work, spots)
        return True


def filling(order: Order, entry: Entry) -> tuple[int, ...]:
    """The order in which work fills the time before a reservation."""
    work = entry.work
    return (*area(work, work.since), work.number) if order.narrows else entry.rank
