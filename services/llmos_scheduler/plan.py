"""`plan`: who starts and who gives way now, from every job that waits or runs. Pure: the same jobs give the same plan.

The plan is made from nothing: queues are served in the tree's order, each in its own, and what runs is selected again
or gives way. GPUs of running jobs that are not selected yet are their queue's `pool`: its own jobs may use them as far
as the order preempts, those of other queues only by reclaim (within quota, from queues above theirs).
The first waiting job that does not fit gets a reservation (EASY, Lifka 1995): later ones start only if, by what is
known of durations, that does not delay it. If too little is known, they may pass for `Rules.hold`, then GPUs are kept
for it as they come free.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from llmos_scheduler.order import HOUR, LAST, Job, Order, next_change, standing
from llmos_scheduler.queues import Tree
from llmos_scheduler.victims import choose_victims


@dataclass(frozen=True, slots=True)
class Rules:
    """`min_run`: how long a job runs before it may be preempted; `hold`: how long a job may be passed by others
    while nobody knows when it could start. Milliseconds."""

    min_run: int = 0
    hold: int = HOUR


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order: stop `stops`, start `starts`."""

    stops: list[Job]
    starts: list[Job]


@dataclass(slots=True)
class _Line:
    """One leaf queue while it is served. `running`: its running jobs that are still to be looked at, best rank first;
    `pool`: GPUs that those hold which can stay, as far as is known by now."""

    name: str
    order: Order
    jobs: list[Job]
    running: list[Job] = field(default_factory=list)
    position: int = 0
    pool: int = 0
    served: bool = False  # a job that had to compete was looked at
    narrowed: bool = False  # sorted for backfill


@dataclass(slots=True)
class _Reservation:
    """For the first that does not fit: `at` is when it can start (`LAST`: unknown), `extra` GPUs it leaves then."""

    job: Job
    at: int
    extra: int


@dataclass(slots=True)
class _Planning:
    tree: Tree
    orders: Mapping[str, Order]
    now: int
    rules: Rules
    free: int
    lines: dict[str, _Line] = field(default_factory=dict)
    chosen: dict[str, Job] = field(default_factory=dict)
    stops: dict[str, Job] = field(default_factory=dict)
    reservation: _Reservation | None = None


def plan(jobs: Iterable[Job], tree: Tree, orders: Mapping[str, Order], now: int, rules: Rules = Rules()) -> Plan:
    """The plan for all `jobs`, each of which `tree.possible`. `orders` has one for every leaf; `tree` is used up."""
    made = _Planning(tree, orders, now, rules, int(tree.totals[0]))
    _line_up(made, jobs)
    heads = {name: line.jobs[0].gpus for name, line in made.lines.items()}
    while heads:
        line = made.lines[tree.pick(heads)]
        stopped = len(made.stops)
        _serve(made, line, line.jobs[line.position])
        line.position += 1
        for other in [line] if len(made.stops) == stopped else [made.lines[name] for name in heads]:
            while other.position < len(other.jobs) and other.jobs[other.position].id in made.stops:
                other.position += 1
            if other.position >= len(other.jobs) or (made.free <= 0 and not _may_take(made, other)):
                del heads[other.name]
            else:
                heads[other.name] = other.jobs[other.position].gpus
    for line in made.lines.values():
        for job in line.jobs:
            if job.running and job.id not in made.chosen:
                made.stops[job.id] = job
    starts = [job for job in made.chosen.values() if not job.running]
    return Plan(list(made.stops.values()), starts)


def _line_up(made: _Planning, jobs: Iterable[Job]) -> None:
    for job in jobs:
        line = made.lines.get(job.queue)
        if line is None:
            line = made.lines[job.queue] = _Line(job.queue, made.orders[job.queue], [])
        line.jobs.append(job)
    made.lines = dict(sorted(made.lines.items()))
    for line in made.lines.values():
        order, now = line.order, made.now
        line.jobs.sort(key=lambda job: (not _pinned(made, order, job), standing(order, job, now)))
        line.running = [job for job in line.jobs if job.running]
        line.pool = sum(job.gpus for job in line.running)
        made.free -= line.pool


def _pinned(made: _Planning, order: Order, job: Job) -> bool:
    """Whether a running job keeps its GPUs whatever its own queue would rather run."""
    return job.running and (order.preempts != "rank" or made.now - job.since < max(made.rules.min_run, order.turn))


def _may_take(made: _Planning, line: _Line) -> bool:
    """Whether any job of the line could still get GPUs although none are free."""
    return line.pool > 0 or line.order.preempts == "priority" or made.tree.guaranteed(line.name) is not None


def _serve(made: _Planning, line: _Line, job: Job) -> None:
    """Select the line's next job, or pass it over."""
    pinned = _pinned(made, line.order, job)
    first, line.served = not line.served, line.served or not pinned
    if job.running:
        line.running.remove(job)
    if not pinned and not made.tree.allowed(job.queue, job.gpus):
        if not line.order.skips:
            line.position = len(line.jobs)
    elif job.running or _leaves_reservation(made, job):
        missing = job.gpus - made.free - line.pool
        if missing <= 0 or _preempt(made, line, job, missing):
            _select(made, line, job)
        elif not job.running and (first or line.order.preempts != "rank"):
            if made.reservation is None:
                made.reservation = _reserve(made, job)
            _narrow(made, line)
    if job.running != (job.id in made.chosen):
        _settle(made, line)


def _select(made: _Planning, line: _Line, job: Job) -> None:
    """A running job keeps its GPUs; one that waits takes free ones first, so that its queue keeps what it can."""
    own = min(job.gpus, line.pool) if job.running else max(0, job.gpus - made.free)
    line.pool -= own
    made.free -= job.gpus - own
    made.tree.charge(job.queue, (job.gpus,))
    made.chosen[job.id] = job
    reservation = made.reservation
    if reservation is not None and not job.running and not _ends_before(made, job, reservation.at):
        reservation.extra -= job.gpus


def _settle(made: _Planning, line: _Line) -> None:
    """The pool is what those hold that can stay; what is left of it is free for every queue."""
    stay = sum(job.gpus for job in _staying(line))
    made.free += line.pool - stay
    line.pool = stay


def _staying(line: _Line) -> list[Job]:
    """Running jobs for which the pool is enough, best rank first. Not final: at its turn each is looked at again."""
    left, found = line.pool, []
    for job in line.running:
        if job.gpus <= left:
            found.append(job)
            left -= job.gpus
    return found


def _narrow(made: _Planning, line: _Line) -> None:
    """After a job that did not fit: nobody of a queue that does not skip, the rest in the order of backfill."""
    if not line.order.skips:
        line.position = len(line.jobs)
    elif not line.narrowed:
        rank, now, rest = line.order.backfill_rank, made.now, line.position + 1
        line.jobs[rest:] = sorted(line.jobs[rest:], key=lambda job: rank(job, now))
        line.narrowed = True


# --- preemption ---


def _preempt(made: _Planning, line: _Line, job: Job, needed: int) -> bool:
    """Stop what the job may push aside, if that frees `needed` GPUs more; whether it did. A running job that is about
    to give way within its own queue may reclaim as well."""
    if made.reservation is not None and not job.running:
        return False
    reach = _reclaimable(made, job) if made.tree.entitled(job.queue, job.gpus) else []
    if line.order.preempts == "priority" and not job.running:
        mine = line.order.rank(job, made.now)
        reach += [
            other
            for other in line.jobs
            if other.running
            and other.id not in made.stops
            and other.priority < job.priority
            and line.order.rank(other, made.now) > mine
            and made.now - other.since >= made.rules.min_run
        ]
    victims = choose_victims(needed, reach)
    for victim in victims:
        made.stops[victim.id] = victim
        made.free += victim.gpus
        if victim.id in made.chosen:
            del made.chosen[victim.id]
            made.tree.charge(victim.queue, (victim.gpus,), -1)
        else:
            made.lines[victim.queue].running.remove(victim)
            made.lines[victim.queue].pool -= victim.gpus
    return bool(victims)


def _reclaimable(made: _Planning, job: Job) -> list[Job]:
    """Running jobs of queues that hold more than the quota that covers them, as many as bring each down to it."""
    tree, mine = made.tree, made.tree.guaranteed(job.queue)
    found: list[Job] = []
    surplus: dict[str | None, float] = {}
    for name, line in made.lines.items():
        owner = tree.guaranteed(name)
        if owner == mine:
            continue
        if owner is None:
            surplus[owner] = float("inf")
        elif owner not in surplus:
            held = sum(other.pool for leaf, other in made.lines.items() if tree.guaranteed(leaf) == owner)
            surplus[owner] = tree.used[owner][0] + held - (tree.branches[owner].queue.quota or 0)
        for victim in reversed(_staying(line)):
            if made.now - victim.since >= made.rules.min_run and surplus[owner] > 0:
                found.append(victim)
                surplus[owner] -= victim.gpus
    return found


# --- reservation ---


def _reserve(made: _Planning, job: Job) -> _Reservation:
    """When enough GPUs will have come free for the job, if what runs and starts now ends as expected."""
    available = made.free
    ends = sorted(
        (LAST if (left := other.remaining(made.now)) is None else made.now + left, other.gpus)
        for line in made.lines.values()
        for other in line.jobs
        if (other.running and other.id not in made.stops) or other.id in made.chosen
    )
    for index, (end, gpus) in enumerate(ends):
        available += gpus
        if end != LAST and available >= job.gpus and (index + 1 == len(ends) or ends[index + 1][0] > end):
            return _Reservation(job, end, available - job.gpus)
    return _Reservation(job, LAST, 0)


def _leaves_reservation(made: _Planning, job: Job) -> bool:
    """Whether starting the job now leaves the reservation's start where it is."""
    held = made.reservation
    if held is None:
        return True
    if held.at == LAST:
        return held.job.wait(made.now) < made.rules.hold
    return _ends_before(made, job, held.at) or job.gpus <= held.extra


def _ends_before(made: _Planning, job: Job, time: int) -> bool:
    left = job.remaining(made.now)
    return left is not None and made.now + left <= time


# --- the next look ---


def next_look(jobs: Iterable[Job], orders: Mapping[str, Order], now: int, rules: Rules = Rules()) -> int:
    """When to plan again if nothing happens before, once the plan of `now` is carried out: when a rank changes by
    itself, or a minimum run ends. `LAST` if nobody waits, or nothing will change."""
    wake, waits = LAST, False
    for job in jobs:
        waits = waits or not job.running
        at = next_change(orders[job.queue], job, now)
        if job.running and now - job.since < rules.min_run:
            at = min(at, job.since + rules.min_run)
        if now < at < wake:
            wake = at
    return wake if waits else LAST
