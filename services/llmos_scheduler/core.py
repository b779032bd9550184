"""`decide`: what the state asks for now, as effects. Pure: the same state and time give the same effects, in one order.

The shell performs them and asks again once the facts it emitted have come back through the stream: nothing is
remembered between two decisions but the state, and what `Brain` could work out of it again.
"""

from collections.abc import Iterator

from llmos.contracts.tasks import Member, TaskPlaced
from llmos_scheduler import rollout
from llmos_scheduler.brain import STARTS, Brain
from llmos_scheduler.effects import Effect, Emit, StopTask
from llmos_scheduler.lifecycle import preempt, withdrawals
from llmos_scheduler.records import Job, State, Task
from llmos_scheduler.work import Start, Stop

STRAY_S = 15.0  # how long after its last word a stray is told to stop
STRAYS = "strays"  # who wants these stops


def decide(state: State, brain: Brain, now: float, *, since: float = 0.0) -> list[Effect]:
    """The effects that the state asks for at `now` (Unix seconds): facts, and the commands that are due.

    `since` is the time from which the bus has been heard without a gap: nobody's silence before it counts. The brain
    is this state's; call `ask_again` on it when an effect could not be performed.
    """
    facts = brain.sync(now, since)
    if state.strays or brain.strays:
        brain.strays = [
            StopTask(stray.task, stray.lease, "its lease is over", checkpoint=True)
            for stray in state.strays.values()
            if now - stray.heard_at < STRAY_S
        ]
        brain.wanted.set(STRAYS, brain.strays)
    said = {fact.id for fact in facts}
    placed = [effect for effect in _place(state, brain, now) if not isinstance(effect, Emit) or effect.id not in said]
    return [*brain.wanted.due(now), *facts, *placed]


def _place(state: State, brain: Brain, now: float) -> Iterator[Effect]:
    """Leases for those whose turn it is, and whoever has to make room."""
    lease = state.leases
    for id, node in brain.checks.plan(STARTS):
        lease += 1
        job = state.jobs[id]
        yield from _lease(job, job.tasks["check"], lease, [Member(node)])
    plan = brain.plan(now)
    found: dict[str, dict[str, list[str]]] = {}
    for start in plan.starts:
        members = brain.tenancy.members(start.places)
        if start.work.latency:
            found.setdefault(start.work.id.split("/")[1], {}).setdefault(members[0].node, members[0].devices)
            continue
        lease += 1
        job, task = _task(state, start)
        yield from _lease(job, task, lease, members)
    for name, nodes in sorted(found.items()):
        yield rollout.grant(state, brain.wishes[name], nodes)
    for stop in plan.stops:
        job, task = _task(state, stop)
        by = stop.by.id if stop.by.latency else stop.by.id.rpartition("-")[0]
        yield preempt(job, task, by, _why(stop, by))


def _task(state: State, of: Start | Stop) -> tuple[Job, Task]:
    """The task that a work of the planner is."""
    job, _, kind = of.work.id.rpartition("-")
    return state.jobs[job], state.jobs[job].tasks[kind]  # type: ignore[index]


def _lease(job: Job, task: Task, lease: int, members: list[Member]) -> Iterator[Effect]:
    """Give the task a lease."""
    if task.lease:  # what the last lease left in the queue would come to the same worker
        yield from withdrawals(task)
    wants = task.request
    placed = TaskPlaced(
        task=task.id,
        job=job.id,
        tenant=job.tenant,
        kind=task.kind,
        attempt=task.failures + 1,
        lease=lease,
        node=members[0].node,
        cpus=wants.cpus,
        memory=wants.memory,
        devices=members[0].devices,
        gpu_milli=wants.gpu_milli,
        gpu_memory=wants.gpu_memory,
        members=members if len(members) > 1 else [],
    )
    yield Emit(placed, f"{task.id}.{lease}.placed", job.moved_by, job.traceparent)


def _why(stop: Stop, by: str) -> str:
    """The reason for a preemption, in words."""
    return {
        "rank": f"{by} comes before it by its queue's policy",
        "priority": f"{by} has a higher priority",
        "reclaim": f"{by} takes back what its queue is guaranteed",
        "latency": f"{by} serves requests",
        "reservation": f"its nodes are reserved for {by}",
    }[stop.reason]
