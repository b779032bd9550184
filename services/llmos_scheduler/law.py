"""Whom policy lets work push aside, and what that costs: by rank or priority in its queue, by quota, by reservation,
and replicas that serve requests by what they are. What was asked to stop already is nobody's victim."""

from collections.abc import Iterator
from dataclasses import dataclass

from llmos_scheduler.ground import Access, Ground, Run
from llmos_scheduler.holds import Holds
from llmos_scheduler.order import LAST
from llmos_scheduler.room import Victim
from llmos_scheduler.shares import Shares
from llmos_scheduler.waiting import Line, Sleepers
from llmos_scheduler.work import Reason, Rules, Work


@dataclass(slots=True)
class Facts:
    """What a plan is made from."""

    ground: Ground
    access: Access
    shares: Shares
    lines: dict[str, Line]
    sleepers: Sleepers
    running: dict[str, Run]
    leaving: set[str]  # running work that was asked to stop
    rules: Rules


class Law:
    """The rules at one time. `retry`: when time alone will have made somebody a victim."""

    def __init__(self, facts: Facts, holds: Holds, now: int) -> None:
        self.facts, self.holds, self.now = facts, holds, now
        self.ground, self.shares = facts.ground, facts.shares
        self.retry = LAST

    def may_preempt(self, line: Line) -> bool:
        """Whether any work of the line might push others aside."""
        return (
            line.order.preempts != "never"
            or line.latency > 0
            or bool(self.facts.access.reservations)
            or self.shares.owner(line.name) is not None
        )

    def victims(self, line: Line, work: Work) -> Iterator[Victim]:
        """Who might be stopped for the work. Later ones replace earlier ones: the weaker reason comes first."""
        order, now = line.order, self.now
        if order.preempts != "never":
            mine = order.rank(work, now)
            for other in self._own(line, work.priority if order.preempts == "priority" else None):
                rank = order.rank(other, now)
                if rank > mine and not self._pinned(other, line):
                    if order.preempts == "rank":
                        yield Victim(other, "rank", 0, (1, *(-part for part in rank)))
                    else:
                        yield self._victim(other, "priority", 1)
        if self.shares.entitled(work.queue, work.gpu_milli) and work.gpu_milli:
            mine_ = self.shares.owner(work.queue)
            for name, others in self.facts.lines.items():
                owner = self.shares.owner(name)
                if owner != mine_ and self.shares.surplus(owner) > 0:
                    for other in self._own(others):
                        if not self._young(other):
                            yield self._victim(other, "reclaim", 0, owner)
        claims = self.facts.access.claims(self.ground, self.access_key(work), now)
        if claims:
            for row in sorted(claims):
                for other, _ in self.ground.leases[row].values():
                    if self._stoppable(other) and row not in self._claimed(other):
                        yield self._victim(other, "reservation", 0)
        if work.latency:
            for others in self.facts.lines.values():
                for other in self._own(others):
                    yield self._victim(other, "latency", 0)

    def _victim(self, work: Work, reason: Reason, strength: int, owner: str | None = None) -> Victim:
        loss = work.lost(self.now) * work.milli
        return Victim(work, reason, loss, (strength, loss, -work.since, -work.number), owner)

    def _own(self, line: Line, below: int | None = None) -> Iterator[Work]:
        """Running work of the line that may be stopped, of a priority below that one."""
        for priority, works in line.running.items():
            if below is None or priority < below:
                for work in works.values():
                    if self._stoppable(work):
                        yield work

    def _stoppable(self, work: Work) -> bool:
        return work.preemptible and not work.latency and work.id not in self.holds.leaving

    def _young(self, work: Work, least: int = 0) -> bool:
        """Whether it has not run for the minimum time; then it is worth another look when it has."""
        ripe = work.since + max(least, self.facts.rules.min_run)
        if ripe > self.now:
            self.retry = min(self.retry, ripe)
        return ripe > self.now

    def _pinned(self, work: Work, line: Line) -> bool:
        return self._young(work, line.order.turn)

    def access_key(self, work: Work) -> tuple[bool, ...]:
        return self.facts.access.key(work, self.shares.add(work.queue))

    def _claimed(self, work: Work) -> set[int]:
        return self.facts.access.claims(self.ground, self.access_key(work), self.now)

    def outranks(self, line: Line, work: Work) -> bool:
        """Whether better-ranked work of the queue runs on, not just because it must not be stopped yet."""
        order = line.order
        return any(
            order.rank(other, self.now) < order.rank(work, self.now)
            for other in self._own(line)
            if not self._pinned(other, line)
        )
