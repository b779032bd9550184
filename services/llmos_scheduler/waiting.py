"""Work that waits: by leaf queue (`Line`), in each by what it asks for (`Group`), in each by rank.

What fits nowhere sleeps as a group, until a node that could help is freed: a decision costs the logarithm of a queue
and not its length. All queues are heaps whose dead entries are dropped when they come up.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import TypeAlias

import numpy as np

from llmos_scheduler.cluster import WHOLE, Ints, Mask, Room, Shape
from llmos_scheduler.order import LAST, Order, Rank, area, standing
from llmos_scheduler.work import Work

MOST_WOKEN_BY = 64  # nodes that a group remembers as those that woke it

Key: TypeAlias = tuple[object, ...]  # what decides where work fits, and whom it may push aside
Item: TypeAlias = "tuple[Rank, int, Entry]"  # the number tells items apart


@dataclass(slots=True, eq=False)
class Entry:
    """Work in its place. Dead once it left, or has another rank; `out` while a plan would start it."""

    work: Work
    rank: Rank
    group: "Group"
    alive: bool = True
    out: bool = False
    listed: int = 0  # in which of the group's heaps its item is: 1 by rank, 2 by area


@dataclass(slots=True, eq=False)
class Group:
    """Work of one line that fits the same nodes, best rank first. Asleep: it fits nowhere as far as is known.

    `by` are the nodes that woke it; no others have room for it (`None`: nothing is known).
    """

    line: "Line"
    key: Key
    shape: Shape
    nodes: int
    ranked: list[Item] = field(default_factory=list)
    sized: list[Item] = field(default_factory=list)  # by area, if the line's order narrows
    asleep: bool = False
    by: list[int] | None = None

    def head(self) -> Entry | None:
        """Who ranks best."""
        return _head(self.ranked, 1)

    def smallest(self) -> Entry | None:
        """Whose area is smallest."""
        return _head(self.sized, 2)

    def first(self, count: int) -> list[Entry]:
        """Up to `count` entries in order of rank, or of area if the order narrows."""
        heap, bit = (self.sized, 2) if self.line.order.narrows else (self.ranked, 1)
        found: list[Item] = []
        while len(found) < count and _head(heap, bit) is not None:
            found.append(heappop(heap))
        for item in found:
            heappush(heap, item)
        return [entry for _, _, entry in found]


def _head(heap: list[Item], bit: int) -> Entry | None:
    while heap:
        entry = heap[0][2]
        if entry.alive and not entry.out:
            return entry
        entry.listed &= ~bit
        heappop(heap)
    return None


class Line:
    """One leaf queue. Invariant: the head of every group is in `asleep` or `awake`, and who is smallest of a group that
    does not sleep in `narrow`, if the order narrows."""

    def __init__(self, name: str, order: Order, path: list[str]) -> None:
        self.name, self.order, self.path = name, order, path
        self.groups: dict[Key, Group] = {}
        self.asleep: list[Item] = []
        self.awake: list[Item] = []
        self.narrow: list[Item] = []
        self.expiries: list[tuple[int, int, Entry]] = []
        self.running: dict[int, dict[str, Work]] = {}  # by priority
        self.latency = 0  # waiting work that may push aside whatever is preemptible
        self._serial = 0

    def enter(self, work: Work, key: Key, now: int) -> Entry:
        """The work waits in the group of that key."""
        group = self.groups.get(key)
        if group is None:
            group = self.groups[key] = Group(self, key, work.shape, work.nodes)
        work.ranked_since = -1  # what it remembers may be another order's
        entry = Entry(work, standing(self.order, work, now), group)
        self.latency += work.latency
        if work.expires < LAST:
            heappush(self.expiries, (work.expires, self._number(), entry))
        self.put_back(entry)
        return entry

    def put_back(self, entry: Entry) -> None:
        """The entry is in its group (again)."""
        entry.out = False
        group = entry.group
        if self.groups.get(group.key) is not group:  # all others of it left meanwhile: nobody would wake it
            group.asleep, group.by = False, None
            self.groups.setdefault(group.key, group)
        if not entry.listed & 1:
            heappush(group.ranked, (entry.rank, self._number(), entry))
        if self.order.narrows and not entry.listed & 2:
            work = entry.work
            heappush(group.sized, ((*area(work, work.since), work.number), self._number(), entry))
        entry.listed = 3 if self.order.narrows else 1
        if group.ranked[0][2] is entry or (group.sized and group.sized[0][2] is entry):
            self.show(group)

    def take_out(self, entry: Entry) -> None:
        """A plan would start it."""
        entry.out = True
        self.show(entry.group)

    def drop(self, entry: Entry) -> None:
        """It waits no more."""
        entry.alive = False
        self.latency -= entry.work.latency
        self.show(entry.group)
        if not entry.group.ranked:
            self.groups.pop(entry.group.key, None)

    def show(self, group: Group) -> None:
        """Whoever is the group's head now can be found."""
        if group.head() is None:
            return
        heappush(self.asleep if group.asleep else self.awake, group.ranked[0])
        if not group.asleep and self.order.narrows and group.smallest() is not None:
            heappush(self.narrow, group.sized[0])

    def top(self) -> Entry | None:
        """Who ranks best of all that wait."""
        found = [entry for entry in (self.next_asleep(), self.next_awake(False)) if entry is not None]
        return min(found, key=lambda entry: entry.rank, default=None)

    def next_asleep(self) -> Entry | None:
        """Who ranks best of those that sleep."""
        return _peek(self.asleep, lambda entry: entry.group.asleep and entry.group.head() is entry)

    def next_awake(self, narrow: bool) -> Entry | None:
        """Who ranks best of those that are not asleep, or (`narrow`) is the smallest."""
        if narrow:
            return _peek(self.narrow, lambda entry: not entry.group.asleep and entry.group.smallest() is entry)
        return _peek(self.awake, lambda entry: not entry.group.asleep and entry.group.head() is entry)

    def wake(self, group: Group, row: int | None) -> None:
        """A node has room for the group, or (`None`) any might."""
        if row is None or group.nodes != 1:
            group.by = None
        elif group.asleep:
            group.by = [row]
        elif group.by is not None and row not in group.by:
            group.by = [*group.by, row] if len(group.by) < MOST_WOKEN_BY else None
        if group.asleep:
            group.asleep = False
            self.show(group)

    def expire(self, now: int) -> Iterator[Entry]:
        """Work whose rank changed by itself: its new entries."""
        while self.expiries and self.expiries[0][0] <= now:
            _, _, entry = heappop(self.expiries)
            if entry.alive:
                work, key = entry.work, entry.group.key
                self.drop(entry)
                yield self.enter(work, key, now)

    def next_expiry(self) -> int:
        while self.expiries and not self.expiries[0][2].alive:
            heappop(self.expiries)
        return self.expiries[0][0] if self.expiries else LAST

    def _number(self) -> int:
        self._serial += 1
        return self._serial


def _peek(heap: list[Item], valid: Callable[[Entry], bool]) -> Entry | None:
    while heap:
        entry = heap[0][2]
        if entry.alive and not entry.out and valid(entry):
            return entry
        heappop(heap)
    return None


class Sleepers:
    """The groups that sleep, as arrays, to find at once those that a node with room could help."""

    def __init__(self, kinds: Callable[[Shape, int], Mask], count: int) -> None:
        self._kinds_of = kinds
        self._wants: Ints = np.zeros((4, 64), dtype=np.int64)  # cpus, memory, milli, devices; a column a group
        self._wants[0] = np.iinfo(np.int64).max
        self._kinds: Mask = np.zeros((count, 64), dtype=np.bool_)  # a row a kind of nodes: which could ever do
        self._groups: list[Group | None] = [None] * 64
        self._places: dict[int, int] = {}  # id of the group → column
        self._empty = list(range(63, -1, -1))

    def add(self, group: Group) -> None:
        """The group fits nowhere."""
        group.asleep, group.by = True, None
        if id(group) in self._places:
            return
        if not self._empty:
            count = len(self._groups)
            more = np.zeros((4, count), dtype=np.int64)
            more[0] = np.iinfo(np.int64).max
            self._wants = np.concatenate([self._wants, more], axis=1)
            self._kinds = np.concatenate([self._kinds, np.zeros_like(self._kinds)], axis=1)
            self._groups += [None] * count
            self._empty = list(range(2 * count - 1, count - 1, -1))
        column = self._places[id(group)] = self._empty.pop()
        shape = group.shape
        devices = min(1, shape.gpus) if not group.nodes else shape.gpus
        self._wants[:, column] = shape.cpus, shape.memory, shape.milli if shape.gpus else 0, devices
        self._kinds[:, column] = self._kinds_of(shape, group.nodes)
        self._groups[column] = group

    def remove(self, group: Group) -> None:
        column = self._places.pop(id(group), None)
        if column is not None:
            self._wants[0, column] = np.iinfo(np.int64).max
            self._groups[column] = None
            self._empty.append(column)

    def fitting(self, kind: int, room: Room) -> list[Group]:
        """The groups that so much room on a node of that kind might hold, labels aside."""
        if not self._places:
            return []
        most, whole = max(room.milli, default=0), room.milli.count(WHOLE)
        wants, cpus, memory = self._wants, room.cpus, room.memory
        fits = self._kinds[kind] & (wants[0] <= cpus) & (wants[1] <= memory)
        fits &= (wants[2] <= most) & (wants[3] <= max(whole, most > 0))
        found = (self._groups[column] for column in np.flatnonzero(fits).tolist())
        return [group for group in found if group is not None]
