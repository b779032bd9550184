"""`decide`: what the state asks for now, as effects. Pure: the same state and time give the same effects, in one order.

The shell performs them and asks again once the facts it emitted have come back through the stream: nothing is
remembered between two decisions but the state.
"""

from collections.abc import Iterator

from llmos.contracts.jobs import JobCancelled, JobFailed, JobRefused, JobRejected, JobSucceeded
from llmos.contracts.nodes import LOST_AFTER_S
from llmos.contracts.tasks import TaskAssigned, TaskLost, TaskPlaced
from llmos.errors import Problem
from llmos_scheduler import rollout
from llmos_scheduler.effects import DispatchWork, Effect, Emit, StopTask, WithdrawWork
from llmos_scheduler.gpu_nodes import LeastLoss
from llmos_scheduler.placement import Policy, rooms
from llmos_scheduler.records import Job, State, Task

SILENT_S = 60.0  # a task without any sign of life for so long is lost
MISSED_S = LOST_AFTER_S  # with its worker gone too, two missed signs are enough (a living task gives one every 10 s)
STOPPING_S = 60.0  # a task that was told to stop and goes on for so long is given up
UNSTARTED_S = 1.0  # how long a withdrawn task may turn out to have been taken up after all
LONGEST_MESSAGE = 2000  # characters of a worker's problem that a job's end repeats
STRAY_S = 15.0  # how long after its last word a stray is told to stop

DEFAULT_POLICY = LeastLoss()


def decide(state: State, now: float, *, since: float = 0.0, policy: Policy = DEFAULT_POLICY) -> list[Effect]:
    """The effects that the state asks for at `now` (Unix seconds).

    `since` is the time from which the bus has been heard without a gap: nobody's silence before it counts.
    """
    effects: list[Effect] = []
    for job in state.living_jobs():
        effects.extend(_advance(state, job, now, since))
    effects.extend(rollout.keep(state))
    effects.extend(
        StopTask(stray.task, stray.lease, "its lease is over")
        for stray in state.strays.values()
        if now - stray.heard_at < STRAY_S
    )
    effects.extend(_place(state, now, policy))
    return effects


def emit(job: Job, event: JobFailed | JobCancelled | JobRefused | JobRejected | JobSucceeded, fact: str) -> Emit:
    """A fact that ends a job; there is one end, so the id needs no number."""
    return Emit(event, f"{job.id}.{fact}", job.moved_by, job.traceparent)


# --- one job ---


def _advance(state: State, job: Job, now: float, since: float) -> Iterator[Effect]:
    """Whatever the job needs except a node: its end, its lease's end, a hand-over, a stop."""
    task = job.current
    if task is None or not task.live:
        end = _end(job, task, now)
        if end is not None:
            yield end
        elif task is None and job.spec.deploy is not None:
            yield from rollout.advance(state, job, now, since)
        return
    reason = given_up(state, job, task, now, since)
    stop = stopping(job, now)
    if reason:
        yield WithdrawWork(task.kind, task.node, task.id, task.lease)
        yield StopTask(task.id, task.lease, reason, job.traceparent)
        lost = TaskLost(task.id, job.id, job.tenant, task.kind, task.lease, task.node, reason)
        yield Emit(lost, f"{task.id}.{task.lease}.lost", job.moved_by, job.traceparent)
    elif stop is not None:
        if task.state == "placed":
            yield WithdrawWork(task.kind, task.node, task.id, task.lease)
        yield StopTask(task.id, task.lease, stop[1], job.traceparent)
    elif task.state == "placed":
        yield DispatchWork(task.node, _assignment(job, task), job.traceparent)


def stopping(job: Job, now: float) -> tuple[float, str] | None:
    """Since when, and why, the job's work should stop; `None` if it should not."""
    if job.cancelling_at is not None:
        return job.cancelling_at, "the job is cancelled"
    if job.deadline is not None and now >= job.deadline:
        return job.deadline, "the job's deadline has passed"
    return None


def given_up(state: State, job: Job, task: Task, now: float, since: float) -> str:
    """Why the lease of a live task has to end without its worker; empty while there is hope."""
    node = state.nodes.get(task.node)
    here = node is not None and node.runs(task.kind)
    quiet = now - max(task.seen_at, since)
    unstarted = task.state == "placed"
    if not here and (unstarted or quiet >= MISSED_S):
        alone = node is not None and node.alive
        return f"the worker for {task.kind} on {task.node} is gone" if alone else f"the node {task.node} is gone"
    if quiet >= SILENT_S:
        return f"{task.node} {'did not take it up' if unstarted else 'gave no sign of life'} for {SILENT_S:g} s"
    stop = stopping(job, now)
    if stop is not None:
        asked = now - max(stop[0], since)
        if unstarted and asked >= UNSTARTED_S:
            return f"{stop[1]}, and it had not started"
        if asked >= STOPPING_S:
            return f"{stop[1]}, and it did not stop within {STOPPING_S:g} s"
    return ""


def _assignment(job: Job, task: Task) -> TaskAssigned:
    done = job.tasks
    roles = {
        "check": {},
        "train": done["check"].outputs,
        "export": {**done["check"].outputs, **done["train"].outputs},
    }  # fmt: skip
    return TaskAssigned(
        task=task.id,
        job=job.id,
        tenant=job.tenant,
        kind=task.kind,
        attempt=task.attempt,
        lease=task.lease,
        spec=job.spec,
        inputs=dict(roles[task.kind]),
        devices=list(task.devices),
        cpus=task.request.cpus,
        memory=task.request.memory,
    )


def _end(job: Job, task: Task | None, now: float) -> Emit | None:
    """The event that ends a job which holds no lease, if it is to end (a deployment is `rollout`'s affair)."""
    if job.cancelling_at is not None:
        return emit(job, JobCancelled(job.id, job.tenant), "cancelled")
    if task is None:
        if job.version is None:
            problem = Problem("not_registered", "the export succeeded, but no model version was registered for the job")
            return emit(job, JobFailed(job.id, job.tenant, problem), "failed")
        if job.spec.deploy is None:
            return emit(job, JobSucceeded(job.id, job.tenant, job.version.model, job.version.version), "succeeded")
    elif task.state == "rejected":
        return emit(job, JobRejected(job.id, job.tenant, task.faults, job.spec.name), "rejected")
    elif task.state == "refused":
        return emit(job, JobRefused(job.id, job.tenant, task.reasons, task.metrics), "refused")
    elif task.state == "failed":
        return emit(job, JobFailed(job.id, job.tenant, _failure(job, task)), "failed")
    if job.deadline is not None and now >= job.deadline:
        where = f"{task.kind} had not finished" if task is not None else "the deployment was not ready"
        problem = Problem("deadline", f"the deadline passed: {where}", "Give the job more time, or a higher priority.")
        return emit(job, JobFailed(job.id, job.tenant, problem), "failed")
    return None


def _failure(job: Job, task: Task) -> Problem:
    limit = job.spec.retry.max_attempts
    why = task.problem or Problem("error", "no reason was given")
    times = f"attempt {task.failures} of {limit}" if task.failures else "it never started"
    message = f"{task.kind} failed on {task.node} ({times}): {why.message[:LONGEST_MESSAGE]}"
    return Problem(why.code, message, why.remedy, why.param)


# --- placement ---


def waiting_tasks(state: State, now: float) -> list[tuple[Job, Task]]:
    """Jobs whose next task may start now, with that task."""
    return [
        (job, task)
        for job in state.living_jobs()
        if (task := job.current) is not None
        and task.state == "waiting"
        and task.not_before <= now
        and stopping(job, now) is None
    ]


def _place(state: State, now: float, policy: Policy) -> Iterator[Effect]:
    waiting = waiting_tasks(state, now)
    if not waiting:
        return
    free, lease = rooms(state), state.leases
    for job, task in policy.order(state, waiting, now):
        room = policy.choose(state, job, task, free.values())
        if room is None:
            continue
        devices = room.devices(task.request)[: task.request.gpus]
        room.take(task.kind, task.request, devices)
        lease += 1
        if task.lease:  # what the last lease left in the queue would come to the same worker
            yield WithdrawWork(task.kind, task.node, task.id, task.lease)
        placed = TaskPlaced(
            task=task.id,
            job=job.id,
            tenant=job.tenant,
            kind=task.kind,
            attempt=task.failures + 1,
            lease=lease,
            node=room.node.name,
            cpus=task.request.cpus,
            memory=task.request.memory,
            devices=devices,
        )
        yield Emit(placed, f"{task.id}.{lease}.placed", job.moved_by, job.traceparent)
