"""One queue while a plan is made: whose turn it is in it."""

from dataclasses import dataclass, field
from heapq import heappop

from llmos_scheduler.waiting import Entry, Item, Line
from llmos_scheduler.work import Work


@dataclass(slots=True)
class Cursor:
    """One line while a plan is made. Work of sleeping groups is looked at in its turn as well, since it may hold a
    reservation or push others aside; `seen` are the groups of which that is done, `stash` what it took off the line."""

    line: Line
    blocked: Work | None = None  # the first that could not start
    served: bool = False  # one started, or will
    preempts: bool = False  # some of it may push others aside
    closed: bool = False
    short: bool = False  # only work that ends before a reservation is looked for
    seen: set[int] = field(default_factory=set)
    stash: list[Item] = field(default_factory=list)

    @property
    def narrow(self) -> bool:
        """Whether work goes by area now: what fits first, then what might push others aside."""
        return self.blocked is not None and self.line.order.narrows

    def next(self) -> Entry | None:
        """Who is next by rank."""
        if self.closed:
            return None
        awake = self.line.next_awake(self.narrow)
        asleep = self._next_asleep() if self.blocked is None or self.preempts else None
        if asleep is None or (awake is not None and (self.narrow or awake.rank < asleep.rank)):
            return awake
        return asleep

    def _next_asleep(self) -> Entry | None:
        tops = self.line.asleep
        while (entry := self.line.next_asleep()) is not None and id(entry.group) in self.seen:
            self.stash.append(heappop(tops))
        return entry
