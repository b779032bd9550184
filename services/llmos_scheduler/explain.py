"""What a job does or waits for, as one typed answer: which obstacles, who holds what it needs, when it starts at the
latest, and what would let it run now. Pure; the planner judges, this says it.
"""

import dataclasses
import re
from collections.abc import Iterable, Sequence

import msgspec

from llmos.contracts.jobs import Explanation, Obstacle
from llmos_scheduler import rollout
from llmos_scheduler.brain import Brain, reservation_of
from llmos_scheduler.checks import check_places
from llmos_scheduler.lifecycle import stopping
from llmos_scheduler.order import ORDERS
from llmos_scheduler.placement import by_node, first_end, soonest, waiting_tasks
from llmos_scheduler.records import Job, State, Task, TurnedAway
from llmos_scheduler.remedies import remedies, too_large
from llmos_scheduler.views_cluster import upward
from llmos_scheduler.work import Cause, Verdict
from llmos_scheduler.works import milliseconds, task_work

SHOWN = 3  # names in a sentence
LONGEST_QUEUE = 5_000  # of a longer one, who is ahead and what would help is not worked out
HIGHEST = 100  # priority
OFFER = "-offer"
HARDWARE = {"resources", "quota"}  # obstacles that end with what runs


def explain(state: State, brain: Brain, job: Job | TurnedAway, now: float) -> Explanation:
    """The answer for a job that is known; `brain` is the state's."""
    if isinstance(job, TurnedAway):
        return Explanation(job.job, "rejected", "The job was not admitted.", [str(fault) for fault in job.faults])
    task = job.current
    if job.ended:
        return _ended(job)
    stop = stopping(job, now)
    if stop is not None:
        what = f"{task.kind} on {task.node} has been told to stop" if task and task.live else "it ends now"
        return Explanation(job.id, job.state, f"{_sentence(stop.why)}: {what}.")
    if task is None:
        return _deploying(state, brain, job, now)
    if task.live:
        return Explanation(job.id, job.state, _working(task, now))
    if task.state != "waiting":
        return Explanation(job.id, job.state, f"{_sentence(task.kind)} ended as {task.state}; the job ends now.")
    if task.not_before > now:
        return _backing_off(job, task, now)
    if task.kind == "check":
        return _checking(state, job, task)
    try:
        verdict = brain.planner.why(task.id, milliseconds(now))
    except KeyError:  # it came a moment ago
        return Explanation(job.id, job.state, f"{_sentence(task.kind)} is about to be planned; ask again.")
    return waiting(state, brain, job, task, verdict, now)


def waiting(
    state: State, brain: Brain, job: Job, task: Task, verdict: Verdict, now: float, *, would: bool = False
) -> Explanation:
    """What the planner's verdict means for a task that waits, or (`would`) for one that nobody submitted."""
    kind = _sentence(task.kind)
    starts, waits = ("would start", "would wait") if would else ("starts", "waits")
    if verdict.starts_on:
        where = list(verdict.starts_on)
        summary = f"{kind} {starts} now on {_names(where)}."
        return Explanation(job.id, job.state, summary, earliest_start=now, starts_on=where)
    reasons, _ = by_node(state, task.kind, task.request, _barred(state, job, now))
    victims = owners(verdict.preempts) or [other.job for other in state.live_tasks() if other.gives_way == task.id]
    if victims:
        have = "has" if len(victims) == 1 else "have"
        summary = (
            f"{kind} {starts} as soon as {_names(victims)} {have} saved {'its' if have == 'has' else 'their'} work."
        )
        return Explanation(job.id, job.state, summary, reasons, preempts=victims)
    obstacles = [_cause(cause) for cause in verdict.causes]
    ahead = _ahead(state, brain, job, task, now)
    summary = f"{kind} needs {task.request} and {waits}: {obstacles[0].message if obstacles else 'it is not its turn'}."
    would_run, earliest = owners(verdict.would_run), verdict.earliest and verdict.earliest / 1000
    if not any(node.runs(task.kind) for node in state.nodes.values()):
        obstacles, would_run = [Obstacle("worker", f"no living node takes {task.kind} work")], []
        summary = f"{_sentence(obstacles[0].message)}."
    elif too_large(state, task):
        summary = f"{kind} needs {task.request}, and no node is that large."
        obstacles = [Obstacle("resources", f"no node is large enough for {task.request}")]
        would_run, earliest = [], None
    elif ahead:
        would_run = []  # whoever is ahead would take that room
    elif earliest is None:
        earliest = _by_their_word(state, task, obstacles, now)
    return Explanation(
        job=job.id,
        state=job.state,
        summary=summary,
        reasons=reasons,
        ahead=ahead,
        remedies=remedies(state, task, obstacles),
        waits_for=obstacles,
        held_by=list(dict.fromkeys(id for obstacle in obstacles for id in obstacle.held_by)),
        earliest_start=earliest,
        would_run=[*(f"{owner} ends" for owner in would_run), *offers(state, brain, job, task, now)],
    )


def _by_their_word(state: State, task: Task, obstacles: Sequence[Obstacle], now: float) -> float | None:
    """When it can start by what the workers say of the running tasks' ends; `None` where that is not enough to know."""
    kinds = {obstacle.kind for obstacle in obstacles}
    if kinds == {"limit"}:
        return first_end(state, [id for one in obstacles for id in one.held_by], task.request.amounts[0], now)
    return soonest(state, task, now) if kinds <= HARDWARE and task.request.nodes == 1 else None


def _barred(state: State, job: Job, now: float) -> dict[str, str]:
    """Nodes that are reserved for others at this moment."""
    time, queues = milliseconds(now), upward(job.spec.queue)
    barred: dict[str, str] = {}
    for made in state.reservations.values():
        held = reservation_of(made)
        if held.start <= time and (held.end is None or time < held.end) and not held.admits(queues, job.tenant):
            barred |= dict.fromkeys(made.nodes, f"is reserved ({made.reservation})")
    return barred


def _cause(cause: Cause) -> Obstacle:
    """The planner's cause in the contract's words."""
    message = cause.message.replace(" of no GPUs", " without GPUs")
    message = re.sub(r"^1 nodes (that could hold it |)are", r"1 node \1is", message)
    message = re.sub(r"^1 nodes\b", "1 node", message)
    return Obstacle(cause.kind, message, cause.node_class, cause.nodes, owners(cause.held_by))


def _ahead(state: State, brain: Brain, job: Job, task: Task, now: float) -> list[str]:
    """The jobs of its queue whose turn comes before it, the next one first; none are told of a very long queue."""
    works = [
        task_work(state, other, other_task)
        for other, other_task in waiting_tasks(state, now)
        if other.spec.queue == job.spec.queue and other_task.kind != "check"
    ]
    if len(works) > LONGEST_QUEUE:
        return []
    policy = next((queue.policy for queue in state.queues if queue.name == job.spec.queue), "")
    order, time = ORDERS[policy or brain.planner.rules.order](), milliseconds(now)
    mine = order.rank(task_work(state, job, task), time)
    ranked = sorted((order.rank(work, time), work.id) for work in works)
    return owners(id for rank, id in ranked if rank < mine and id != task.id)


def offers(state: State, brain: Brain, job: Job, task: Task, now: float) -> list[str]:
    """What the job's owner could change for it to start now: the least priority, the most GPUs or nodes that do."""
    if len(state.alive) > LONGEST_QUEUE:
        return []

    gpus, nodes = task.request.gpus, task.request.nodes

    def starts(priority: int = job.spec.priority, gpus: int = gpus, nodes: int = nodes) -> bool:
        request = dataclasses.replace(task.request, gpus=gpus, nodes=nodes)
        changed = dataclasses.replace(task, id=f"{task.id}{OFFER}", request=request)
        offered = dataclasses.replace(job, spec=msgspec.structs.replace(job.spec, priority=priority))
        verdict = brain.planner.what_if(task_work(state, offered, changed), milliseconds(now))
        return bool(verdict.starts_on or verdict.preempts)

    found = []
    low, high = job.spec.priority, HIGHEST
    if low < high and starts(high):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if starts(middle) else (middle, high)
        found.append(f"priority {high} instead of {job.spec.priority}")
    less = next((count for count in range(gpus - 1, 0, -1) if starts(gpus=count)), 0)
    if less:
        found.append(f"{less} GPU{'s' * (less > 1)}{' a node' * (nodes > 1)} instead of {gpus}")
    fewer = next((count for count in range(nodes - 1, 0, -1) if starts(nodes=count)), 0)
    if fewer:
        found.append(f"{fewer} node{'s' * (fewer > 1)} instead of {nodes}")
    return found


def owners(works: Iterable[str]) -> list[str]:
    """The jobs (or `deployment/<name>`) that works of the planner belong to, each once."""
    found: dict[str, None] = {}
    for id in works:
        deployment = id.startswith("deployment/")
        found["/".join(id.partition("@")[0].split("/")[:2]) if deployment else id.rpartition("-")[0]] = None
    return list(found)


# --- states of a job ---


def _ended(job: Job) -> Explanation:
    faults = [str(fault) for task in job.tasks.values() for fault in task.faults]
    reasons = faults or job.tasks["export"].reasons or ([job.problem.message] if job.problem else [])
    return Explanation(job.id, job.state, f"The job has ended: {job.state}.", reasons)


def _working(task: Task, now: float) -> str:
    where = task.node if len(task.members) < 2 else f"{task.node} and {len(task.members) - 1} more nodes"
    if task.preempting_at is not None:
        why = task.preempting_why or "its hardware is needed"
        return f"{_sentence(task.kind)} on {where} saves its work and waits again: {why}."
    if task.state == "placed":
        waited = now - (task.placed_at or now)
        return f"{_sentence(task.kind)} was given to {where} {waited:.0f} s ago and is about to start."
    done = task.progress
    step = f": step {done['step']:g} of {done['steps']:g}" if done.get("steps") else ""
    left = f", about {done['eta']:.0f} s left" if "eta" in done else ""
    return f"{_sentence(task.kind)} runs on {where}{step}{left}."


def _backing_off(job: Job, task: Task, now: float) -> Explanation:
    why = task.problem.message if task.problem else "the worker gave it back"
    summary = f"{_sentence(task.kind)} failed on {task.node} and is tried again in {task.not_before - now:.0f} s."
    again = f"attempt {task.failures + 1} of {job.spec.retry.max_attempts}; the last one ended because: {why}"
    waits = [Obstacle("backoff", again)]
    return Explanation(job.id, job.state, summary, [again], waits_for=waits, earliest_start=task.not_before)


def _checking(state: State, job: Job, task: Task) -> Explanation:
    reasons, _ = by_node(state, task.kind, task.request)
    if not any(node.runs("check") for node in state.nodes.values()):
        waits = Obstacle("worker", "no living node takes check work")
        return Explanation(
            job.id, job.state, f"{_sentence(waits.message)}.", reasons, remedies=["Start a trainer on a node."],
            waits_for=[waits],
        )  # fmt: skip
    remedies: list[str] = []
    if any(check_places(node) for node in state.nodes.values()):
        waits = Obstacle("resources", "every node that checks data is busy with other checks")
    elif closed := sorted(node.name for node in state.nodes.values() if node.runs("check") and node.cordoned):
        waits = Obstacle("cordon", f"the nodes that check data are closed: {', '.join(closed)}", nodes=len(closed))
        remedies = [f"Let a node take work again: llmos uncordon {closed[0]}."]
    else:
        waits = Obstacle("resources", "the hardware of the nodes that check data is not known")
        remedies = ["Start a hw-agent there."]
    summary = f"Check waits for a place: {waits.message}."
    return Explanation(job.id, job.state, summary, reasons, remedies=remedies, waits_for=[waits])


def _deploying(state: State, brain: Brain, job: Job, now: float) -> Explanation:
    why = rollout.obstacle(state, job)
    remedies = ["Start an inferencer on another node."] if "can serve" in why else []
    waits = [Obstacle("deployment", why)]
    held: list[str] = []
    name = job.spec.deploy.name if job.spec.deploy else ""
    wish = brain.wishes.get(name)
    if wish is not None and wish.job == job.id:
        try:
            verdict = brain.planner.why(f"deployment/{name}/{wish.replicas - wish.missing}", milliseconds(now))
        except KeyError:
            verdict = Verdict()
        waits += [_cause(cause) for cause in verdict.causes]
        held = owners(verdict.held_by)
    return Explanation(job.id, job.state, f"{_sentence(why)}.", remedies=remedies, waits_for=waits, held_by=held)


# --- words ---


def _names(found: Iterable[str]) -> str:
    names = list(found)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
