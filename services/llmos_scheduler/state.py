"""`apply`: one event changes the state. The same function follows the stream and rebuilds the state after a crash.

It is total: an event that does not fit (a duplicate, one of a lease that is over, of a job that nobody knows) changes
nothing, so the order in which the stream stored the facts decides, and nothing else.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct

from llmos.contracts import deployments, jobs, models, nodes, tasks
from llmos.contracts.jobs import JobState
from llmos.errors import Rejected
from llmos_scheduler import state_deployments, state_tasks
from llmos_scheduler.records import Job, Node, State, Task, TurnedAway, Worker
from llmos_scheduler.resources import request_for

KEEP_ENDED = 20_000  # jobs that stay in memory after their end, to be shown
FORGET_EVERY = 1_000  # admitted jobs: then what was asked for before counts half

E = TypeVar("E", bound=Struct)
Fold = Callable[[State, E, float, str], None]


def apply(state: State, event: Struct, at: float, id: str = "") -> State:
    """Change `state` by one event that the bus stored at `at` (Unix seconds) under `id`, and return it.

    The state is changed in place: it belongs to the caller alone.
    """
    fold = _FOLDS.get(type(event))
    if fold is not None:
        fold(state, event, at, id)
    return state


# --- jobs ---


def _on_admitted(state: State, event: jobs.JobAdmitted, at: float, id: str) -> None:
    if event.job in state.jobs or event.job in state.turned_away:
        return
    try:
        wants = {kind: request_for(kind, event.spec) for kind in tasks.KINDS}
    except Rejected:  # not admitted by a scheduler
        return
    state.admitted += 1
    state.asked[wants["train"]] = state.asked.get(wants["train"], 0) + 1
    if state.admitted % FORGET_EVERY == 0:
        state.asked = {request: half for request, count in state.asked.items() if (half := count // 2)}
    job = Job(event.job, event.spec, state.admitted, event.submitted_at, event.traceparent, moved_by=id)
    job.tasks = {kind: Task(f"{event.job}-{kind}", event.job, kind, wants[kind]) for kind in tasks.KINDS}
    first = job.tasks[tasks.KINDS[0]]
    first.state, first.waiting_since = "waiting", at
    state.jobs[job.id] = job
    state.alive[job.id] = None


def _on_rejected(state: State, event: jobs.JobRejected, at: float, id: str) -> None:
    if event.job in state.jobs:
        _end(state, event, "rejected", at, id)
    elif event.job not in state.turned_away:
        state.turned_away[event.job] = TurnedAway(event.job, event.tenant, event.name, list(event.faults), at)
        _remember(state, event.job)


def _on_cancelling(state: State, event: jobs.JobCancelling, at: float, id: str) -> None:
    job = _alive(state, event)
    if job is not None and job.cancelling_at is None:
        job.cancelling_at, job.moved_by = at, id or job.moved_by


def _on_failed(state: State, event: jobs.JobFailed, at: float, id: str) -> None:
    job = _end(state, event, "failed", at, id)
    if job is not None:
        job.problem = event.problem


def _on_deployed(state: State, event: jobs.JobDeployed, at: float, id: str) -> None:
    job = _end(state, event, "deployed", at, id)
    deployment = state.deployments.get(job.spec.deploy.name) if job is not None and job.spec.deploy else None
    if deployment is not None and deployment.change.job == event.job:
        deployment.settled = deployment.change


def _ending(word: JobState) -> Callable[[State, Any, float, str], None]:
    def fold(state: State, event: JobEnd, at: float, id: str) -> None:
        _end(state, event, word, at, id)

    return fold


JobEnd = (
    jobs.JobRejected | jobs.JobCancelling | jobs.JobCancelled | jobs.JobFailed | jobs.JobRefused
    | jobs.JobSucceeded | jobs.JobDeployed
)  # fmt: skip


def _alive(state: State, event: JobEnd) -> Job | None:
    job = state.jobs.get(event.job)
    return job if job is not None and not job.ended and job.tenant == event.tenant else None


def _end(state: State, event: JobEnd, word: JobState, at: float, id: str) -> Job | None:
    """End a living job: whatever of it has not ended is cancelled, its lease is over."""
    job = _alive(state, event)
    if job is None:
        return None
    job.ended, job.ended_at, job.moved_by = word, at, id or job.moved_by
    for task in job.tasks.values():
        if task.live:
            task.ended_at = at
        if task.live or task.state in ("pending", "waiting"):
            task.state = "cancelled"
    del state.alive[job.id]
    _remember(state, job.id)
    return job


def _remember(state: State, job: str) -> None:
    state.ended[job] = None
    while len(state.ended) > KEEP_ENDED:
        oldest = next(iter(state.ended))
        del state.ended[oldest]
        state.jobs.pop(oldest, None)
        state.turned_away.pop(oldest, None)


# --- nodes ---


def _node(state: State, name: str) -> Node:
    return state.nodes.setdefault(name, Node(name))


def _on_inventoried(state: State, event: nodes.NodeInventoried, at: float, id: str) -> None:
    _node(state, event.node).inventory = event.inventory


def _on_joined(state: State, event: nodes.WorkerJoined, at: float, id: str) -> None:
    node = _node(state, event.node)
    known = node.workers.get(event.service)
    epoch = known.epoch + 1 if known else 1
    node.workers[event.service] = Worker(event.service, list(event.kinds), event.memory, True, epoch)
    node.lost = False


def _on_worker_lost(state: State, event: nodes.WorkerLost, at: float, id: str) -> None:
    node = state.nodes.get(event.node)
    worker = node.workers.get(event.service) if node else None
    if node is None or worker is None:
        return
    worker.alive = False
    if not node.runs("serve"):
        state_deployments.node_stopped_serving(state, node.name)


def _on_node_lost(state: State, event: nodes.NodeLost, at: float, id: str) -> None:
    node = state.nodes.get(event.node)
    if node is None or node.lost:
        return
    node.lost = True
    node.losses += 1
    for worker in node.workers.values():
        worker.alive = False
    state_deployments.node_stopped_serving(state, node.name)


_FOLDS: dict[type[Struct], Callable[[State, Any, float, str], None]] = {
    jobs.JobAdmitted: _on_admitted,
    jobs.JobRejected: _on_rejected,
    jobs.JobCancelling: _on_cancelling,
    jobs.JobCancelled: _ending("cancelled"),
    jobs.JobFailed: _on_failed,
    jobs.JobRefused: _ending("refused"),
    jobs.JobSucceeded: _ending("succeeded"),
    jobs.JobDeployed: _on_deployed,
    tasks.TaskPlaced: state_tasks.on_placed,
    tasks.TaskStarted: state_tasks.on_sign_of_life,
    tasks.TaskProgressed: state_tasks.on_sign_of_life,
    tasks.TaskCheckpointed: state_tasks.on_sign_of_life,
    tasks.TaskSucceeded: state_tasks.on_succeeded,
    tasks.TaskFailed: state_tasks.on_failed,
    tasks.TaskRejected: state_tasks.on_rejected,
    tasks.TaskRefused: state_tasks.on_refused,
    tasks.TaskCancelled: state_tasks.on_cancelled,
    tasks.TaskLost: state_tasks.on_lost,
    nodes.NodeInventoried: _on_inventoried,
    nodes.WorkerJoined: _on_joined,
    nodes.WorkerLost: _on_worker_lost,
    nodes.NodeLost: _on_node_lost,
    models.ModelExported: state_deployments.on_exported,
    deployments.DeploymentChanged: state_deployments.on_changed,
    deployments.ReplicaReady: state_deployments.on_ready,
    deployments.ReplicaFailed: state_deployments.on_replica_failed,
    deployments.ReplicaUnloaded: state_deployments.on_unloaded,
}
