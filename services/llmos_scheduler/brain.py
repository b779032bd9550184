"""`Brain`: what can be worked out from the state and is worth keeping between decisions. A cache: one that is built
from the state gives the same effects as one that followed it, at the price of a look at everything.

It follows the state by its journal, so that a decision costs what changed since the last one, however many jobs wait:
jobs that a fact touched or whose time came are looked at, and the planner is told what became of them. Pure.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from math import inf
from typing import NamedTuple

from llmos.contracts.queues import QueueSettings, ReservationMade
from llmos.contracts.tasks import Member
from llmos_scheduler import rollout
from llmos_scheduler.agenda import Agenda
from llmos_scheduler.checks import Checks
from llmos_scheduler.effects import Command, Effect, Emit, StopTask
from llmos_scheduler.lifecycle import look, stopping
from llmos_scheduler.order import ORDERS
from llmos_scheduler.planner import Planner
from llmos_scheduler.queues import Queue
from llmos_scheduler.records import Deployment, Job, Journal, State, Task
from llmos_scheduler.resources import Request
from llmos_scheduler.rollout import Wish
from llmos_scheduler.tenancy import Tenancy
from llmos_scheduler.wanted import Wanted
from llmos_scheduler.work import Plan, Reservation, Rules, Work
from llmos_scheduler.works import lease_work, milliseconds, replica_works, saved, task_work

RULES = Rules(min_run=60_000)
VACATING_S = 60.0  # a replica that was told to go holds its lease for so long, if it does not say that it went
STARTS = 256  # at most, a decision


class Told(NamedTuple):
    """What the planner is to know of a work: `known` says when it has to be told again, `members` what it holds
    (`None`: it waits), `saved` when it last saved its work."""

    known: tuple[object, ...]
    work: Callable[[], Work]
    members: Sequence[Member] | None = None
    saved: int = -1


class Brain:
    """The planner, the places for checks, the commands that are wanted, and when to look at what again."""

    def __init__(self, state: State) -> None:
        if state.journal is None:
            state.journal = Journal()
        self.state = state
        self.planner = Planner({}, (), RULES, usage=state.usage)
        self.checks = Checks()
        self.tenancy = Tenancy()
        self.wanted = Wanted()
        self.strays: list[StopTask] = []
        self.wishes: dict[str, Wish] = {}  # deployments with replicas that wait for a node
        self._due_jobs = Agenda()
        self._due_deployments = Agenda()
        # What the planner knows, by owner and work.
        self._told: dict[str, dict[str, tuple[bool, tuple[object, ...], int]]] = {}
        self._deploying: dict[str, dict[str, None]] = {}  # jobs at their deployment, by its name
        self._queues: list[QueueSettings] = []
        self._reserved: dict[str, ReservationMade] = {}
        self._plan_at = 0
        self._touched = Journal(dict(state.alive), dict.fromkeys(state.nodes), dict.fromkeys(state.deployments), True)

    def ask_again(self) -> None:
        """Something could not be done: everything that is wanted is due again."""
        self.wanted.ask_again()

    # --- following the state ---

    def sync(self, now: float, since: float) -> list[Emit]:
        """Follow the state up to now; the facts that follow from it, but for placements."""
        touched = self._look_at(now)
        if touched.settings:
            self._settings()
        self._nodes(touched)
        facts: list[Emit] = []
        for job in sorted(self._jobs(touched), key=lambda job: job.number):
            found = self._job(job, now, since)
            if found:
                self._touched.jobs[job.id] = None  # until the fact is stored, it is asked for again
            facts += found
        for name in sorted(touched.deployments):
            found = self._deployment(name, now)
            if found:
                self._touched.deployments[name] = None
            facts += found
        return facts

    def plan(self, now: float) -> Plan:
        """Who starts and who gives way, of what the planner plans."""
        time = milliseconds(now)
        if time < self._plan_at:
            return Plan()
        made = self.planner.plan(time, limit=STARTS)
        # Until facts say what became of it, it is planned again; a plan of nothing holds until something changes.
        self._plan_at = 0 if made.starts or made.stops else self.planner.next_look(time)
        return made

    def _look_at(self, now: float) -> Journal:
        """Everything that a fact touched, whose time came, or that rests on such a thing."""
        journal, more = self.state.journal, self._touched
        self.state.journal, self._touched = Journal(), Journal()
        touched = journal if journal is not None else Journal()
        touched.jobs.update(more.jobs)
        touched.nodes.update(more.nodes)
        touched.deployments.update(more.deployments)
        touched.settings = touched.settings or more.settings
        touched.jobs.update(dict.fromkeys(self._due_jobs.due(now)))
        touched.deployments.update(dict.fromkeys(self._due_deployments.due(now)))
        for name in touched.nodes:
            owners = self.tenancy.on(name)
            touched.jobs.update({owner: None for owner in owners if "/" not in owner})
        if touched.nodes:
            touched.deployments.update(dict.fromkeys(self.state.deployments))
            touched.deployments.update(dict.fromkeys(self._deploying))
        for id in touched.jobs:
            job = self.state.jobs.get(id)
            if job is not None and job.spec.deploy is not None and (job.ended or job.current is None):
                touched.deployments[job.spec.deploy.name] = None
        for name in touched.deployments:
            touched.jobs.update(self._deploying.get(name, {}))
            deployment = self.state.deployments.get(name)
            if deployment is not None:
                touched.jobs[deployment.change.job] = None
                self.tenancy.hold(_owner(name), [member for member, _ in _leases(deployment, now)])
        return touched

    def _jobs(self, touched: Journal) -> list[Job]:
        """The living jobs that were touched; what is left of those that ended or are forgotten is dropped."""
        found = []
        for id in touched.jobs:
            job = self.state.jobs.get(id)
            if job is not None and not job.ended:
                found.append(job)
            else:
                self._tell(id, {})
                self.checks.leave(id)
                self.wanted.set(id, ())
                self._due_jobs.set(id)
                if job is not None and job.spec.deploy is not None:
                    self._deploying.get(job.spec.deploy.name, {}).pop(id, None)
        return found

    def _settings(self) -> None:
        state, self._plan_at = self.state, 0
        if self._queues != state.queues:  # the planner goes over everything that waits
            self._queues = list(state.queues)
            self.planner.set_queues(_queue(settings) for settings in state.queues)
        for name, made in state.reservations.items():
            if self._reserved.get(name) is not made:
                self.planner.reserve(reservation_of(made))
        for name in self._reserved.keys() - state.reservations.keys():
            self.planner.unreserve(name)
        self._reserved = dict(state.reservations)
        self.planner.learn({request.shape(("train",)): count for request, count in state.expected.items()})

    def _nodes(self, touched: Journal) -> None:
        """Follow the nodes' hardware and what is leased of it."""
        for id in touched.jobs:
            job = self.state.jobs.get(id)
            task = job.current if job is not None and not job.ended else None
            self.tenancy.hold(id, task.members if task is not None and task.live else ())
        changed = False
        for name in sorted({*touched.nodes, *self.tenancy.stale()}):
            node = self.state.nodes[name]
            if self.tenancy.update(node):
                changed = True
                for owner in self.tenancy.on(name):  # the numbers of its devices may be others
                    self._tell(owner, {})
                    (touched.deployments if "/" in owner else touched.jobs)[owner.removeprefix("deployment/")] = None
            self.planner.close(name, node.cordoned)
            self.checks.node(node)
            self._plan_at = 0
        if changed:
            self.planner.set_machines(dict(sorted(self.tenancy.machines.items())))

    # --- jobs and deployments ---

    def _job(self, job: Job, now: float, since: float) -> list[Emit]:
        """Look at a living job, and tell the planner what became of its task."""
        state, task = self.state, job.current
        found = look(state, job, now, since)
        self._due_jobs.set(job.id, found.until)
        self.wanted.set(job.id, _commands(found.effects))
        works: dict[str, Told] = {}
        if task is None:
            if job.spec.deploy is not None:
                self._deploying.setdefault(job.spec.deploy.name, {})[job.id] = None
        elif task.live:
            holds = (task.lease, task.gives_way)
            works[task.id] = Told(holds, partial(task_work, state, job, task), task.members, saved(task))
        elif task.state == "waiting" and task.not_before <= now and stopping(job, now) is None:
            room = state.rooms.get(task.id, ())
            works[task.id] = Told((task.waiting_since, *room), partial(task_work, state, job, task))
        if task is not None and task.kind == "check":
            self._tell_checks(job, task, works.get(task.id))
        else:
            self.checks.leave(job.id)
            self._tell(job.id, works)
        return [effect for effect in found.effects if isinstance(effect, Emit)]

    def _deployment(self, name: str, now: float) -> list[Emit]:
        """Look at a deployment, and tell the planner what its replicas hold and wait for."""
        state, owner, deployment = self.state, _owner(name), self.state.deployments.get(name)
        facts: list[Emit] = []
        works: dict[str, Told] = {}
        wish = rollout.wish(state, name)
        if deployment is not None:
            facts = rollout.keep(state, deployment)
            self.wanted.set(owner, rollout.tell(state, deployment))
            ends = [held.at + VACATING_S for held in deployment.vacating.values()]
            self._due_deployments.set(name, min((end for end in ends if end > now), default=inf))
            for member, request in _leases(deployment, now):
                held = partial(lease_work, deployment, member.node, request)
                known = (deployment.change.generation, request, *member.devices)
                works[f"{owner}@{member.node}"] = Told(known, held, [member])
        if wish is not None and wish.missing > 0:
            self.wishes[name] = wish
            for work in replica_works(state, wish, deployment):
                waits = (wish.job, wish.request, wish.spread, work.apart, work.room)
                works[work.id] = Told(waits, partial(_same, work))
        else:
            self.wishes.pop(name, None)
        self._tell(owner, works)
        return facts

    # --- telling the planner ---

    def _tell(self, owner: str, works: Mapping[str, Told]) -> None:
        """All that the planner is to know of an owner: works that hold a lease, or wait."""
        before = self._told.pop(owner, {})
        for id in before:
            if id not in works:
                self.planner.leave(id)
                self._plan_at = 0
        for id, told in works.items():
            known = before.get(id)
            if known is None or known[:2] != (told.members is None, told.known):
                if told.members is None:
                    self.planner.wait(told.work())
                else:
                    self.planner.run(told.work(), self.tenancy.places(told.members))
                self._plan_at = 0
            elif known[2] != told.saved:
                self.planner.saved(id, told.saved)
        if works:
            self._told[owner] = {id: (told.members is None, told.known, told.saved) for id, told in works.items()}

    def _tell_checks(self, job: Job, task: Task, told: Told | None) -> None:
        if told is None:
            self.checks.leave(job.id)
        elif told.members is None:
            self.checks.wait(job, task)
        else:
            self.checks.run(job.id, task.node)


def _same(work: Work) -> Work:
    return work


def _owner(name: str) -> str:
    return f"deployment/{name}"


def _leases(deployment: Deployment, now: float) -> Iterator[tuple[Member, Request]]:
    """What the replicas of a deployment hold, those that still leave among them."""
    if deployment.request is not None:
        for node, devices in deployment.change.leases.items():
            yield Member(node, devices), deployment.request
    for node, held in deployment.vacating.items():
        if now < held.at + VACATING_S:
            yield Member(node, held.devices), held.request


def _commands(effects: Iterable[Effect]) -> list[Command]:
    return [effect for effect in effects if not isinstance(effect, Emit)]


def _queue(said: QueueSettings) -> Queue:
    """What cannot be meant was not said by `set_queues`, and counts as not said."""
    policy = said.policy if said.policy in ORDERS else ""
    return Queue(said.name, policy, said.weight if said.weight > 0 else 1.0, said.quota, said.limit)


def reservation_of(made: ReservationMade) -> Reservation:
    """The reservation in the planner's words."""
    return Reservation(
        name=made.reservation,
        nodes=frozenset(made.nodes),
        queues=frozenset({made.queue} - {""}),
        tenants=frozenset({made.tenant} - {""}),
        start=milliseconds(made.start),
        end=None if made.end is None else milliseconds(made.end),
    )
