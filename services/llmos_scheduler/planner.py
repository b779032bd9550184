"""`Planner`: the order of waiting work, where it goes, who gives way, and why it waits. One core for the live scheduler
and for the simulator.

It is told facts (`wait`, `run`, `leave`, `close`, `reserve`, …) and asked for plans. It holds no truth: told the same
facts in any order, another planner gives the same plans to the byte. Pure: time is an argument, in milliseconds.
"""

from collections.abc import Iterable, Mapping

from llmos.errors import Rejected
from llmos_scheduler.cluster import Machine, Shape
from llmos_scheduler.ground import Access, Ground, Run, Spots
from llmos_scheduler.law import Facts
from llmos_scheduler.order import LAST, ORDERS, next_change
from llmos_scheduler.planning import Planning
from llmos_scheduler.queues import Queue
from llmos_scheduler.ranking import RANKINGS
from llmos_scheduler.shares import Shares
from llmos_scheduler.usage import Usage, amounts
from llmos_scheduler.verdict import explain
from llmos_scheduler.waiting import Entry, Key, Line, Sleepers
from llmos_scheduler.work import Places, Plan, Reservation, Rules, Verdict, Work

MOST_STARTS = 4096  # that `why` looks ahead


class Planner:
    """Facts in, plans out. Nodes break ties in the order of `machines`. `usage` is read at each plan: whoever folds the
    facts keeps it. Work that was handed in belongs to the planner until it leaves: hand in another object if its
    queue, shape, nodes or priority change. Raises `Rejected` for an unknown order or ranking.
    """

    def __init__(
        self,
        machines: Mapping[str, Machine],
        queues: Iterable[Queue] = (),
        rules: Rules = Rules(),
        *,
        usage: Usage | None = None,
    ) -> None:
        if rules.placement not in RANKINGS:
            raise Rejected(f"there is no placement {rules.placement!r}", remedy=f"Choose one of {', '.join(RANKINGS)}.")
        self.rules = rules
        self.usage = usage
        self._machines = dict(machines)
        self._closed: set[str] = set()
        self._access = Access()
        self._waiting: dict[str, Work] = {}
        self._running: dict[str, Run] = {}
        self._leaving: set[str] = set()
        self._counts: Mapping[Shape, int] = {}
        self._entries: dict[str, Entry] = {}
        self._new: dict[str, Work] = {}  # waits, and has no entry yet
        self._tentative: dict[str, tuple[Entry, Spots, Places]] = {}  # what the last plan would start
        self._roomed: dict[str, None] = {}  # waits, and others were stopped for it
        self._retry = LAST
        self._ground: Ground | None = None
        self._lines: dict[str, Line] | None = None
        self.set_queues(queues)

    # --- facts ---

    def set_machines(self, machines: Mapping[str, Machine]) -> None:
        """The nodes that live now, with their hardware; leases on others count for their queues only."""
        self._undo()
        self._machines = dict(machines)
        self._ground = None

    def set_queues(self, queues: Iterable[Queue]) -> None:
        """The queues that an operator described; any other is a leaf without quota. Raises `Rejected`."""
        self._undo()
        self._queues = {queue.name: queue for queue in queues}
        for name in {self.rules.order, *(queue.order for queue in self._queues.values() if queue.order)}:
            if name not in ORDERS:
                raise Rejected(f"there is no policy {name!r}", remedy=f"Choose one of {', '.join(ORDERS)}.")
        self._ground = self._lines = None

    def close(self, node: str, closed: bool = True) -> None:
        """Start nothing on the node (a cordon, or nobody works there), or open it again. Nodes begin open."""
        if closed == (node in self._closed):
            return
        (self._closed.add if closed else self._closed.discard)(node)
        if self._ground is not None and node in self._ground.rows:
            self._undo()
            self._ground.close(self._ground.rows[node], closed)

    def reserve(self, reservation: Reservation) -> None:
        """Keep nodes for queues or tenants; the name replaces an earlier one."""
        self._undo()
        self._access.reservations[reservation.name] = reservation
        self._access.changed()
        self._lines = None

    def unreserve(self, name: str) -> None:
        """End a reservation."""
        self._undo()
        if self._access.reservations.pop(name, None):
            self._access.changed()
            self._lines = None

    def learn(self, counts: Mapping[Shape, int]) -> None:
        """The work to expect: how often each shape was asked for. Costs a look at every node."""
        self._counts = dict(counts)
        if self._ground is not None:
            self._ground.learn(self._counts)

    def wait(self, work: Work) -> None:
        """It waits since `work.since`: new, back from a run, or changed."""
        self.leave(work.id)
        work.running = False
        self._waiting[work.id] = self._new[work.id] = work
        if work.room:
            self._roomed[work.id] = None

    def run(self, work: Work, places: Places) -> None:
        """It holds a lease on the places since `work.since`, or what is known of its run changed (`gives_way`, …)."""
        planned = self._tentative.get(work.id)
        if planned is not None and planned[2] == places and self._ground is not None:
            entry, spots, _ = self._tentative.pop(work.id)
            if entry.work.shape == work.shape and entry.work.nodes == work.nodes and entry.work.queue == work.queue:
                self._drop(work.id)
                self._ground.keep(work, spots)
                self._count(Run(work, places, spots))
                return
            self._tentative[work.id] = planned
        self.leave(work.id)
        run = Run(work, places)
        self._count(run)
        if self._ground is not None:
            run.spots = self._ground.spots(places)
            self._ground.take(work, run.spots)
            self._shares.charge(work.queue, amounts(work.shape, work.nodes))

    def saved(self, id: str, time: int) -> None:
        """Running work took a checkpoint."""
        if id in self._running:
            self._running[id].work.saved = time

    def leave(self, id: str) -> None:
        """It neither waits nor runs any more. Unknown ids are nothing new."""
        if id in self._tentative:
            self._undo_one(id)
        if id in self._waiting:
            self._drop(id)
        elif id in self._running:
            run = self._running.pop(id)
            work = run.work
            self._leaving.discard(id)
            if self._ground is not None:
                self._ground.give_back(work, run.spots)
                self._shares.charge(work.queue, amounts(work.shape, work.nodes), -1)
            if self._lines is not None:
                del self._lines[work.queue].running[work.priority][id]

    # --- answers ---

    def plan(self, now: int, *, limit: int = 256) -> Plan:
        """At most `limit` starts, and who is to give way. Takes nothing: tell the planner what became of it."""
        made = self._make(now, limit)
        return Plan(made.starts, made.stops, made.more)

    def next_look(self, now: int) -> int:
        """When time alone could change the plan, if nothing happens before; `LAST` if never. After `plan`."""
        if not self._waiting:
            return LAST
        found = [self._retry, *self._access.boundaries()]
        for line in self._settle(now).lines.values():
            found.append(line.next_expiry())
            if line.groups and line.order.preempts == "rank":
                pause = max(self.rules.min_run, line.order.turn)
                for works in line.running.values():
                    for work in works.values():
                        found += (next_change(line.order, work, now), work.since + pause)
        return min((time for time in found if time > now), default=LAST)

    def why(self, id: str, now: int) -> Verdict:
        """Why the waiting work waits, or where it would start now. Raises `KeyError` if it does not wait."""
        work = self._waiting[id]
        made = self._make(now, MOST_STARTS)
        self._undo()
        return explain(self._settle(now), made, work, now)

    def what_if(self, work: Work, now: int) -> Verdict:
        """`why` for work that was not submitted; nothing remains of it."""
        self.wait(work)
        verdict = self.why(work.id, now)
        self.leave(work.id)
        return verdict

    # --- what is derived from the facts ---

    def _make(self, now: int, limit: int) -> Planning:
        facts = self._settle(now)
        for line in facts.lines.values():
            for entry in line.expire(now):
                self._entries[entry.work.id] = entry
        if self._access.advance(now):
            for line in facts.lines.values():
                for group in list(line.groups.values()):
                    line.wake(group, None)
        self._wake()
        averages = self.usage.averages(now) if self.usage is not None and len(facts.lines) > 1 else {}
        facts.shares.begin(averages)
        made = Planning(facts, now)
        made.make([self._entries[id] for id in self._roomed], limit)
        made.close()
        self._retry = min(made.retry, made.law.retry)
        for (entry, spots), start in zip(made.taken, made.starts, strict=True):
            self._tentative[entry.work.id] = entry, spots, start.places
        return made

    def _settle(self, now: int) -> Facts:
        """Bring everything up to date."""
        self._undo()
        ground = self._ground
        if ground is None:
            ground = self._ground = Ground(self._machines, self.rules.placement)
            if self._counts:
                ground.learn(self._counts)
            for name in self._closed & ground.rows.keys():
                ground.close(ground.rows[name], True)
            self._shares = Shares(self._queues.values(), ground.totals)
            for run in self._running.values():
                run.spots = ground.spots(run.places)
                ground.take(run.work, run.spots)
                self._shares.charge(run.work.queue, amounts(run.work.shape, run.work.nodes))
            self._access.changed()
            self._sleepers = Sleepers(ground.kinds, len(ground.cluster.kinds))
            for line in (self._lines or {}).values():
                for group in list(line.groups.values()):
                    line.wake(group, None)
        if self._lines is None:
            self._lines, self._entries, self._new = {}, {}, dict(self._waiting)
            self._sleepers = Sleepers(ground.kinds, len(ground.cluster.kinds))
            for run in self._running.values():
                self._line(run.work.queue).running.setdefault(run.work.priority, {})[run.work.id] = run.work
        for work in self._new.values():
            line = self._line(work.queue)
            self._entries[work.id] = line.enter(work, self._key(work, line), now)
        self._new = {}
        ground.tidy()
        return Facts(
            ground, self._access, self._shares, self._lines, self._sleepers, self._running, self._leaving, self.rules
        )

    def _wake(self) -> None:
        """Wake the groups that freed nodes could help."""
        assert self._ground is not None
        for row in self._ground.freed:
            if self._ground.cluster.open[row]:
                for group in self._sleepers.fitting(int(self._ground.cluster.kind[row]), self._ground.room(row)):
                    if not group.shape.labels or self._ground.suits(group.shape, row):
                        group.line.wake(group, row)
        self._ground.freed = {}

    def _line(self, name: str) -> Line:
        assert self._lines is not None
        line = self._lines.get(name)
        if line is None:
            queue = self._queues.get(name)
            order = ORDERS[(queue.order if queue else "") or self.rules.order]()
            line = self._lines[name] = Line(name, order, self._shares.add(name))
            self._lines = dict(sorted(self._lines.items()))
        return line

    def _key(self, work: Work, line: Line) -> Key:
        """Work of one key fits the same nodes, and may push the same work aside if its rank says so."""
        priority = work.priority if line.order.preempts == "priority" else 0
        siblings = (work.spread, *sorted(work.apart)) if work.apart else ()
        return work.shape, work.nodes, work.latency, work.family, priority, siblings, self._access.key(work, line.path)

    def _count(self, run: Run) -> None:
        work = run.work
        work.running = True
        self._running[work.id] = run
        if work.gives_way:
            self._leaving.add(work.id)
        if self._lines is not None:
            self._line(work.queue).running.setdefault(work.priority, {})[work.id] = work

    def _drop(self, id: str) -> None:
        work = self._waiting.pop(id)
        self._new.pop(id, None)
        self._roomed.pop(id, None)
        entry = self._entries.pop(id, None)
        if entry is not None and self._lines is not None:
            self._lines[work.queue].drop(entry)
            if not entry.group.ranked:
                self._sleepers.remove(entry.group)

    def _undo(self) -> None:
        """Take back the leases of the last plan that nobody confirmed."""
        for id in list(self._tentative):
            self._undo_one(id)

    def _undo_one(self, id: str) -> None:
        entry, spots, _ = self._tentative.pop(id)
        work, ground = entry.work, self._ground
        assert ground is not None
        for row, gpus in spots:
            ground.cluster.move(row, ground.part(work, gpus), gpus, 1)
            ground.free(row)
        self._shares.charge(work.queue, amounts(work.shape, work.nodes), -1)
        entry.group.line.put_back(entry)
