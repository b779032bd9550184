"""`Planner`: the order of waiting work, where it goes, who gives way, and why it waits. One core for the live scheduler
and for the simulator.

It is told facts (`wait`, `run`, `leave`, `close`, `reserve`, …) and asked for plans. It holds no truth: told the same
facts in any order, another planner gives the same plans to the byte. Pure: time is an argument, in milliseconds.
"""

from collections.abc import Iterable, Mapping, Sequence

from llmos_scheduler.cluster import Cluster, Machine, Shape
from llmos_scheduler.order import LAST, ORDERS, next_change, standing
from llmos_scheduler.queues import Queue
from llmos_scheduler.ranking import NEVER, ranking
from llmos_scheduler.usage import Usage
from llmos_scheduler.work import Cause, Places, Plan, Reservation, Rules, Start, Verdict, Work


class Planner:
    """Facts in, plans out. `usage` is read at each plan: whoever folds the facts keeps it (`Usage`).

    A node is free of leases as far as `run` was not told of them. Raises `Rejected` for an unknown order or ranking.
    """

    def __init__(
        self,
        machines: Mapping[str, Machine],
        queues: Iterable[Queue] = (),
        rules: Rules = Rules(),
        *,
        usage: Usage | None = None,
    ) -> None:
        self.rules = rules
        self.usage = usage
        self._machines = dict(machines)
        self._closed: set[str] = set()
        self._reservations: dict[str, Reservation] = {}
        self._waiting: dict[str, Work] = {}
        self._running: dict[str, tuple[Work, Places]] = {}
        self._counts: Mapping[Shape, int] = {}
        self.set_queues(queues)

    # --- facts ---

    def set_machines(self, machines: Mapping[str, Machine]) -> None:
        """The nodes that live now, with their hardware; leases on others count for their queues only."""
        self._machines = dict(machines)

    def set_queues(self, queues: Iterable[Queue]) -> None:
        """The queues that an operator described; any other is a leaf without quota."""
        self._queues = {queue.name: queue for queue in queues}

    def close(self, node: str, closed: bool = True) -> None:
        """Start nothing on the node (a cordon, or nobody works there), or open it again. Nodes begin open."""
        (self._closed.add if closed else self._closed.discard)(node)

    def reserve(self, reservation: Reservation) -> None:
        """Keep nodes for queues or tenants; the name replaces an earlier one."""
        self._reservations[reservation.name] = reservation

    def unreserve(self, name: str) -> None:
        self._reservations.pop(name, None)

    def learn(self, counts: Mapping[Shape, int]) -> None:
        """The work to expect: how often each shape was asked for. Costs a look at every node."""
        self._counts = dict(counts)

    def wait(self, work: Work) -> None:
        """It waits since `work.since`: new, back from a run, or changed."""
        self.leave(work.id)
        work.running = False
        self._waiting[work.id] = work

    def run(self, work: Work, places: Places) -> None:
        """It holds a lease on the places since `work.since`, or what is known of its run changed (`gives_way`, …)."""
        self.leave(work.id)
        work.running = True
        self._running[work.id] = (work, places)

    def saved(self, id: str, time: int) -> None:
        """Running work took a checkpoint."""
        if id in self._running:
            self._running[id][0].saved = time

    def leave(self, id: str) -> None:
        """It neither waits nor runs any more. Unknown ids are nothing new."""
        self._waiting.pop(id, None)
        self._running.pop(id, None)

    # --- answers ---

    def plan(self, now: int, *, limit: int = 256) -> Plan:
        """At most `limit` starts, and who is to give way. Takes nothing: tell the planner what became of it."""
        made = Plan()
        names = sorted(self._machines)
        cluster = self._cluster(names)
        ranks = ranking(self.rules.placement, cluster)
        ranks.learn(self._counts)
        order = ORDERS[self.rules.order]()
        for work in sorted(self._waiting.values(), key=lambda work: standing(order, work, now)):
            if len(made.starts) >= limit:
                return Plan(made.starts, made.stops, True)
            if work.nodes != 1:
                continue
            costs = ranks.costs(work.shape)
            node = int(costs.argmin()) if len(costs) else 0
            if len(costs) and costs[node] != NEVER:
                gpus = ranks.devices(work.shape, node)
                cluster.take(node, work.shape, gpus)
                made.starts.append(Start(work, ((names[node], tuple(gpus)),)))
        return made

    def next_look(self, now: int) -> int:
        """When time alone could change the plan, if nothing happens before; `LAST` if never."""
        order = ORDERS[self.rules.order]()
        return min((next_change(order, work, now) for work in self._waiting.values()), default=LAST)

    def why(self, id: str, now: int) -> Verdict:
        """Why the waiting work waits, or where it would start now. Raises `KeyError` if it does not wait."""
        work = self._waiting[id]
        for start in self.plan(now, limit=1 << 30).starts:
            if start.work is work:
                return Verdict(starts_on=tuple(node for node, _ in start.places))
        return Verdict(causes=(Cause("resources", f"no node has {work.shape} free"),))

    def what_if(self, work: Work, now: int) -> Verdict:
        """`why` for work that was not submitted; nothing remains of it."""
        self.wait(work)
        verdict = self.why(work.id, now)
        self.leave(work.id)
        return verdict

    def _cluster(self, names: Sequence[str]) -> Cluster:
        cluster = Cluster(self._machines[name] for name in names)
        rows = {name: row for row, name in enumerate(names)}
        for work, places in self._running.values():
            for name, gpus in places:
                if name in rows:
                    cluster.take(rows[name], work.shape, gpus)
        for name in self._closed & rows.keys():
            cluster.cordon(rows[name])
        return cluster
