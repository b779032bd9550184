"""How the facts about tasks change the state. What a lease that is over still says changes nothing."""

from llmos.contracts.tasks import (
    Member,
    TaskCancelled,
    TaskCheckpointed,
    TaskFailed,
    TaskLost,
    TaskPlaced,
    TaskPreempting,
    TaskProgressed,
    TaskRefused,
    TaskRejected,
    TaskStarted,
    TaskSucceeded,
)
from llmos.errors import Problem
from llmos_scheduler.records import Job, State, Stray, Task, TaskState

FIRST_BACKOFF_S = 2.0
LAST_BACKOFF_S = 60.0
STRAY_KEPT_S = 60.0
ROWS = "rows_train"  # the check's metric: rows of the training split
BROKEN_GANG = "gang_broken"  # the problem's code when another member of a gang was lost

TaskFact = (
    TaskPlaced | TaskStarted | TaskProgressed | TaskCheckpointed | TaskSucceeded | TaskFailed
    | TaskRejected | TaskRefused | TaskPreempting | TaskCancelled | TaskLost
)  # fmt: skip


def backoff(setbacks: int) -> float:
    """Seconds to wait after so many setbacks: 2, 4, 8, … at most 60."""
    return min(FIRST_BACKOFF_S * 2.0 ** min(max(setbacks, 1) - 1, 16), LAST_BACKOFF_S)


def _find(state: State, event: TaskFact) -> Task | None:
    job = state.jobs.get(event.job)
    if job is None:
        return None
    task = job.tasks.get(event.task[len(event.job) + 1 :])  # type: ignore[call-overload]  # `<job>-<kind>`
    return task if task is not None and task.id == event.task else None


def _held(state: State, event: TaskFact) -> Task | None:
    """The task, if the event's lease is the one that holds."""
    task = _find(state, event)
    return task if task is not None and task.live and task.lease == event.lease else None


def on_placed(state: State, event: TaskPlaced, at: float, id: str) -> None:
    state.leases = max(state.leases, event.lease)
    job, task = state.jobs.get(event.job), _find(state, event)
    if job is None or task is None or task.state != "waiting" or event.lease <= task.lease or job.ended:
        return
    task.state, task.attempt, task.lease, task.node = "placed", event.attempt, event.lease, event.node
    task.devices = list(event.devices)
    task.members = list(event.members) or [Member(event.node, list(event.devices))]
    task.placed_at = task.seen_at = at
    task.started_at, task.ended_at, task.saved_at, task.progress, task.metrics = None, None, None, {}, {}
    task.waited = max(0.0, at - task.waiting_since)
    job.moved_by = id or job.moved_by
    state.rooms.pop(task.id, None)
    state.leased[job.id] = None
    if task.kind != "check":
        state.usage.change(job.spec.queue, task.request.amounts, int(at * 1000))


def on_preempting(state: State, event: TaskPreempting, at: float, id: str) -> None:
    task = _held(state, event)
    if task is None or task.preempting_at is not None:
        return
    job, other = state.jobs[task.job], state.jobs.get(event.by)
    job.moved_by = id or job.moved_by
    beneficiary = event.by
    if other is not None:
        beneficiary = other.current.id if other.current is not None else ""
    task.preempting_at, task.gives_way, task.preempting_why = at, beneficiary or task.id, event.reason
    if beneficiary and (other is None or not other.ended):
        room = state.rooms.setdefault(beneficiary, [])
        room += [member.node for member in task.members if member.node not in room]


def wait(state: State, job: Job, task: Task, at: float) -> None:
    """The task waits for a node from now on."""
    task.state, task.waiting_since, task.not_before = "waiting", at, at
    if task.kind == "train":
        task.expected = job.spec.duration
        if task.expected is None:
            task.expected = state.durations.expect(job.spec, "train", job.tasks["check"].metrics.get(ROWS, 0.0))


def end_lease(state: State, job: Job, task: Task, at: float) -> None:
    """The lease of a live task is over: what it held is free, what it saved is kept."""
    state.leased.pop(job.id, None)
    task.ended_at = at
    if task.kind != "check":
        state.usage.change(job.spec.queue, task.request.amounts, int(at * 1000), -1)
    task.ran += max(0.0, at - (task.placed_at if task.placed_at is not None else at))
    if task.saved_at is not None and task.started_at is not None:
        task.done += max(0.0, task.saved_at - task.started_at)
    task.preempting_at, task.gives_way, task.preempting_why = None, "", ""


def on_sign_of_life(state: State, event: TaskStarted | TaskProgressed | TaskCheckpointed, at: float, id: str) -> None:
    task = _held(state, event)
    if task is None:
        known = _find(state, event)
        if known is not None and not isinstance(event, TaskCheckpointed):
            for key in [key for key, stray in state.strays.items() if stray.heard_at < at - STRAY_KEPT_S]:
                del state.strays[key]
            state.strays[f"{event.task}.{event.lease}"] = Stray(event.task, event.lease, at)
        return
    task.seen_at = max(task.seen_at, at)
    if task.state == "placed":
        task.state, task.started_at, task.idle = "running", at, 0
        if state.journal is not None:
            state.journal.jobs[event.job] = None
    if isinstance(event, TaskCheckpointed):
        task.saved_at = at
        if state.journal is not None:
            state.journal.jobs[event.job] = None


def on_progressed(state: State, event: TaskProgressed, at: float, id: str) -> None:
    """The most frequent fact by far."""
    job = state.jobs.get(event.job)
    task = job.tasks.get(event.kind) if job is not None else None
    if task is None or task.state != "running" or task.lease != event.lease or task.id != event.task:
        on_sign_of_life(state, event, at, id)
        task = _held(state, event)
        if task is None:
            return
    if at > task.seen_at:
        task.seen_at = at
    progress: dict[str, int | float] = {
        "step": event.step,
        "steps": event.steps,
        "epoch": event.epoch,
        "fraction": event.fraction,
    }
    if event.eta is not None:
        progress["eta"] = event.eta
    task.progress, task.metrics = progress, event.metrics


def _finish(state: State, event: TaskFact, to: TaskState, at: float, id: str) -> Task | None:
    """End the lease; the task, or `None` if the event came from a lease that is over (then the stray is gone)."""
    task = _held(state, event)
    if task is None:
        state.strays.pop(f"{event.task}.{event.lease}", None)
        return None
    job = state.jobs[task.job]
    task.started_at = task.started_at if task.started_at is not None else at
    end_lease(state, job, task, at)
    task.state = to
    job.moved_by = id or job.moved_by
    return task


def on_succeeded(state: State, event: TaskSucceeded, at: float, id: str) -> None:
    task = _finish(state, event, "succeeded", at, id)
    if task is None:
        return
    task.outputs, task.metrics, task.problem = dict(event.outputs), dict(event.metrics), None
    job = state.jobs[task.job]
    if task.kind == "train":
        state.durations.learn(job.spec, "train", task.ran, job.tasks["check"].metrics.get(ROWS, 0.0))
    following = job.current
    if following is not None:
        wait(state, job, following, at)
    else:
        job.exported_at = at


def on_rejected(state: State, event: TaskRejected, at: float, id: str) -> None:
    task = _finish(state, event, "rejected", at, id)
    if task is not None:
        task.faults = list(event.faults)


def on_refused(state: State, event: TaskRefused, at: float, id: str) -> None:
    task = _finish(state, event, "refused", at, id)
    if task is not None:
        task.reasons, task.metrics = list(event.reasons), dict(event.metrics)


def on_failed(state: State, event: TaskFailed, at: float, id: str) -> None:
    task = _finish(state, event, "failed", at, id)
    if task is not None:
        task.problem = event.problem
        _set_back(state, task, at, counted=event.problem.code != BROKEN_GANG, retryable=event.retryable)


def on_lost(state: State, event: TaskLost, at: float, id: str) -> None:
    task = _held(state, event)
    if task is None:
        return
    # A lease that no worker ever took up is no attempt: nothing of the job was tried. Nor is one that was asked back.
    counted = task.state == "running" and task.preempting_at is None
    _finish(state, event, "failed", at, id)
    task.problem = Problem("lost", event.reason)
    _set_back(state, task, at, counted=counted, retryable=True)


def on_cancelled(state: State, event: TaskCancelled, at: float, id: str) -> None:
    # Of a job that is to end, `decide` ends it now; of any other, the worker gave the task back and it waits again:
    # at once if it was asked to.
    held = _held(state, event)
    asked = held is not None and held.preempting_at is not None
    task = _finish(state, event, "cancelled", at, id)
    if task is not None and asked:
        task.preemptions += 1
        wait(state, state.jobs[task.job], task, at)
    elif task is not None:
        _set_back(state, task, at, counted=False, retryable=True)


def _set_back(state: State, task: Task, at: float, *, counted: bool, retryable: bool) -> None:
    """After a bad end: wait for another attempt, or stay failed when there is none left."""
    task.avoid = task.node
    if counted:
        task.failures += 1
    else:
        task.idle += 1
    if retryable and task.failures < state.jobs[task.job].spec.retry.max_attempts:
        wait(state, state.jobs[task.job], task, at)
        task.not_before = at + backoff(task.failures if counted else task.idle)
    else:
        task.state = "failed"
