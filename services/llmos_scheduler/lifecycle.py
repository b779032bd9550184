"""What one job needs now, except a node: its end, the end of its lease, a hand-over, a stop. And until when that holds.

Pure: a function of the state and the time, so a job is looked at again only when a fact touched it or its time came.
"""

from math import inf
from typing import NamedTuple

from llmos.contracts.jobs import JobCancelled, JobFailed, JobRefused, JobRejected, JobSucceeded
from llmos.contracts.nodes import LOST_AFTER_S
from llmos.contracts.tasks import Member, TaskAssigned, TaskLost, TaskPreempting
from llmos.errors import Problem
from llmos_scheduler import rollout
from llmos_scheduler.effects import DispatchWork, Effect, Emit, StopTask, WithdrawWork
from llmos_scheduler.records import Job, State, Task
from llmos_scheduler.resources import GANG

SILENT_S = 60.0  # a task without any sign of life for so long is lost
MISSED_S = LOST_AFTER_S  # with its worker gone too, two missed signs are enough (a living task gives one every 10 s)
STOPPING_S = 60.0  # a task that was told to stop and goes on for so long is given up
PREEMPTING_S = 120.0  # one that was told to save its work first may take longer
UNSTARTED_S = 1.0  # how long a withdrawn task may turn out to have been taken up after all
LONGEST_MESSAGE = 2000  # characters of a worker's problem that a job's end repeats


class Look(NamedTuple):
    """What a job needs, and when time alone could change that."""

    effects: list[Effect]
    until: float = inf


class Stop(NamedTuple):
    """Since when, and why, the work of a task should stop; whether it will go on elsewhere."""

    at: float
    why: str
    checkpoint: bool = False


def look(state: State, job: Job, now: float, since: float) -> Look:
    """What a living job needs at `now`; nobody's silence before `since` counts."""
    task = job.current
    later = job.deadline if job.deadline is not None and job.deadline > now else inf
    if task is not None and task.live:
        effects, until = _working(state, job, task, now, since)
        return Look(effects, min(later, until))
    end = _end(job, task, now)
    if end is not None:  # what a gang's other members have not taken up yet must not wait for them
        left = withdrawals(task) if task is not None and len(task.members) > 1 else []
        return Look([*left, end], later)
    if task is None:
        effects, until = rollout.advance(state, job, now, since)
        return Look(effects, min(later, until))
    return Look([], min(later, task.not_before) if task.not_before > now else later)


def _working(state: State, job: Job, task: Task, now: float, since: float) -> Look:
    """What the lease of a live task needs."""
    lost, until = _hope(state, job, task, now, since)
    stop = asked(job, task, now)
    effects: list[Effect] = []
    if lost:
        effects += withdrawals(task)
        effects.append(StopTask(task.id, task.lease, lost, job.traceparent, stopping(job, now) is None))
        fact = TaskLost(task.id, job.id, job.tenant, task.kind, task.lease, task.node, lost)
        effects.append(Emit(fact, f"{task.id}.{task.lease}.lost", job.moved_by, job.traceparent))
    elif stop is not None:
        if task.state == "placed":
            effects += withdrawals(task)
        effects.append(StopTask(task.id, task.lease, stop.why, job.traceparent, stop.checkpoint))
    else:
        drained = next((member.node for member in task.members if state.drains(member.node)), "")
        if drained and preemptible(job, task):
            effects.append(preempt(job, task, "", f"{drained} is drained"))
        if task.state == "placed":
            effects += [
                DispatchWork(member.node, _assignment(job, task, rank, member), job.traceparent)
                for rank, member in enumerate(task.members)
            ]
    return Look(effects, until)


def preemptible(job: Job, task: Task) -> bool:
    """Whether the task's lease may be asked back: training saves its work, the rest is short."""
    return task.kind == "train" and job.spec.preemptible


def preempt(job: Job, task: Task, by: str, reason: str) -> Emit:
    """Ask the lease back."""
    fact = TaskPreempting(task.id, job.id, job.tenant, task.kind, task.lease, task.node, by, reason)
    return Emit(fact, f"{task.id}.{task.lease}.preempting", job.moved_by, job.traceparent)


def withdrawals(task: Task) -> list[Effect]:
    """Take what no worker has taken up under the task's newest lease out of the queues."""
    return [WithdrawWork(task.kind, member.node, task.id, task.lease) for member in task.members]


def stopping(job: Job, now: float) -> Stop | None:
    """Whether the job is to end before its work is done."""
    if job.cancelling_at is not None:
        return Stop(job.cancelling_at, "the job is cancelled")
    if job.deadline is not None and now >= job.deadline:
        return Stop(job.deadline, "the job's deadline has passed")
    return None


def asked(job: Job, task: Task, now: float) -> Stop | None:
    """Whether a live task was asked to stop: for good, or to go on elsewhere."""
    stop = stopping(job, now)
    if stop is None and task.preempting_at is not None:
        why = task.preempting_why or "its hardware is needed"
        return Stop(task.preempting_at, why, checkpoint=True)
    return stop


def given_up(state: State, job: Job, task: Task, now: float, since: float) -> str:
    """Why the lease of a live task has to end without its worker; empty while there is hope."""
    return _hope(state, job, task, now, since)[0]


def _hope(state: State, job: Job, task: Task, now: float, since: float) -> tuple[str, float]:
    """As `given_up`, and until when there is hope if nothing happens."""
    unstarted = task.state == "placed"
    heard = max(task.seen_at, since)
    until = heard + SILENT_S
    for rank, member in enumerate(task.members):
        node = state.nodes.get(member.node)
        kinds = (task.kind, GANG) if len(task.members) > 1 else (task.kind,)
        if node is not None and all(node.runs(kind) for kind in kinds):
            continue
        # Only rank 0 gives signs of life: of the others nothing is known once their worker is gone.
        if unstarted or rank or now >= heard + MISSED_S:
            alone = node is not None and node.alive
            return (
                f"the worker for {task.kind} on {member.node} is gone" if alone else f"the node {member.node} is gone"
            ), inf
        until = heard + MISSED_S
    if now >= heard + SILENT_S:
        return f"{task.node} {'did not take it up' if unstarted else 'gave no sign of life'} for {SILENT_S:g} s", inf
    stop = asked(job, task, now)
    if stop is not None:
        told = max(stop.at, since)
        limit = PREEMPTING_S if stop.checkpoint else STOPPING_S
        if unstarted and now >= told + UNSTARTED_S:
            return f"{stop.why}, and it had not started", inf
        if now >= told + limit:
            return f"{stop.why}, and it did not stop within {limit:g} s", inf
        until = min(until, told + (UNSTARTED_S if unstarted else limit))
    return "", until


def _assignment(job: Job, task: Task, rank: int, member: Member) -> TaskAssigned:
    inputs: dict[str, str] = {}
    for earlier in job.tasks.values():
        if earlier is task:
            break
        inputs |= earlier.outputs
    wants = task.request
    return TaskAssigned(
        task=task.id,
        job=job.id,
        tenant=job.tenant,
        kind=task.kind,
        attempt=task.attempt,
        lease=task.lease,
        spec=job.spec,
        inputs=inputs,
        devices=list(member.devices),
        cpus=wants.cpus,
        memory=wants.memory,
        gpu_milli=wants.gpu_milli,
        gpu_memory=wants.gpu_memory,
        rank=rank,
        world=len(task.members),
    )


def _end(job: Job, task: Task | None, now: float) -> Emit | None:
    """The event that ends a job which holds no lease, if it is to end (a deployment is `rollout`'s affair)."""
    if job.cancelling_at is not None:
        return end(job, JobCancelled(job.id, job.tenant), "cancelled")
    if task is None:
        if job.version is None:
            problem = Problem("not_registered", "the export succeeded, but no model version was registered for the job")
            return end(job, JobFailed(job.id, job.tenant, problem), "failed")
        if job.spec.deploy is None:
            return end(job, JobSucceeded(job.id, job.tenant, job.version.model, job.version.version), "succeeded")
    elif task.state == "rejected":
        return end(job, JobRejected(job.id, job.tenant, task.faults, job.spec.name), "rejected")
    elif task.state == "refused":
        return end(job, JobRefused(job.id, job.tenant, task.reasons, task.metrics), "refused")
    elif task.state == "failed":
        return end(job, JobFailed(job.id, job.tenant, _failure(job, task)), "failed")
    if job.deadline is not None and now >= job.deadline:
        where = f"{task.kind} had not finished" if task is not None else "the deployment was not ready"
        problem = Problem("deadline", f"the deadline passed: {where}", "Give the job more time, or a higher priority.")
        return end(job, JobFailed(job.id, job.tenant, problem), "failed")
    return None


def end(job: Job, event: JobFailed | JobCancelled | JobRefused | JobRejected | JobSucceeded, fact: str) -> Emit:
    """A fact that ends a job; there is one end, so the id needs no number."""
    return Emit(event, f"{job.id}.{fact}", job.moved_by, job.traceparent)


def _failure(job: Job, task: Task) -> Problem:
    limit = job.spec.retry.max_attempts
    why = task.problem or Problem("error", "no reason was given")
    times = f"attempt {task.failures} of {limit}" if task.failures else "it never started"
    message = f"{task.kind} failed on {task.node} ({times}): {why.message[:LONGEST_MESSAGE]}"
    return Problem(why.code, message, why.remedy, why.param)
