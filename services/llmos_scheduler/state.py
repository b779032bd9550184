"""`apply`: one event changes the state. The same function follows the stream and rebuilds the state after a crash.

It is total: an event that does not fit (a duplicate, one of a lease that is over, of a job that nobody knows) changes
nothing, so the order in which the stream stored the facts decides, and nothing else.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from msgspec import Struct

from llmos.contracts import deployments, jobs, models, nodes, queues, tasks
from llmos.contracts.jobs import JobState
from llmos.errors import Rejected
from llmos_scheduler import state_deployments, state_tasks
from llmos_scheduler.records import Job, Journal, Node, State, Task, TurnedAway, Worker
from llmos_scheduler.resources import Request, request_for

KEEP_ENDED = 20_000  # jobs that stay in memory after their end, to be shown
MOST_REQUESTS = 256  # the most common ones stand for all
FORGET_EVERY = 1_000  # admitted jobs: then what was asked for before counts half

E = TypeVar("E", bound=Struct)
Fold = Callable[[State, E, float, str], None]


def apply(state: State, event: Struct, at: float, id: str = "") -> State:
    """Change `state` by one event that the bus stored at `at` (Unix seconds) under `id`, and return it.

    The state is changed in place: it belongs to the caller alone.
    """
    row = _FOLDS.get(type(event))
    if row is not None:
        fold, touches = row
        if touches is not None and state.journal is not None:
            touches(state.journal, event)
        fold(state, event, at, id)
    return state


# --- jobs ---


def _on_admitted(state: State, event: jobs.JobAdmitted, at: float, id: str) -> None:
    if event.job in state.jobs or event.job in state.turned_away:
        return
    try:
        wants = {kind: request_for(kind, event.spec) for kind in tasks.kinds_of(event.spec)}
    except Rejected:  # not admitted by a scheduler
        return
    state.admitted += 1
    _expect(state, wants.get("train", wants["export"]))
    job = Job(event.job, event.spec, state.admitted, event.submitted_at, event.traceparent, moved_by=id)
    job.tasks = {kind: Task(f"{event.job}-{kind}", event.job, kind, request) for kind, request in wants.items()}
    state_tasks.wait(state, job, job.tasks["check"], at)
    state.jobs[job.id] = job
    state.alive[job.id] = None
    if job.spec.deploy is not None:
        state.claims.setdefault(job.spec.deploy.name, {})[job.id] = None


def _expect(state: State, request: Request) -> None:
    """Count what a job asks for. The planner learns of it at moments that depend on nothing but the history."""
    state.asked[request] = state.asked.get(request, 0) + 1
    if state.admitted % FORGET_EVERY == 0:
        state.asked = {request: half for request, count in state.asked.items() if (half := count // 2)}
    if state.admitted >= state.next_lesson:
        state.next_lesson = state.admitted + max(1, min(state.admitted // 4, FORGET_EVERY))
        most = sorted(state.asked.items(), key=lambda item: -item[1])[:MOST_REQUESTS]
        state.expected = dict(most)
        if state.journal is not None:
            state.journal.settings = True


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
        deployment.settle()


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
            state_tasks.end_lease(state, job, task, at)
        if task.live or task.state in ("pending", "waiting"):
            task.state = "cancelled"
    del state.alive[job.id]
    for task in job.tasks.values():
        state.rooms.pop(task.id, None)
    if job.spec.deploy is not None:
        for key in [key for key in state.rooms if key.startswith(f"deployment/{job.spec.deploy.name}/")]:
            del state.rooms[key]
        claims = state.claims[job.spec.deploy.name]
        del claims[job.id]
        if not claims:
            del state.claims[job.spec.deploy.name]
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


def _on_cordoned(state: State, event: nodes.NodeCordoned, at: float, id: str) -> None:
    node = _node(state, event.node)
    node.cordoned, node.draining, node.reason = True, event.drain, event.reason


def _on_uncordoned(state: State, event: nodes.NodeUncordoned, at: float, id: str) -> None:
    node = state.nodes.get(event.node)
    if node is not None:
        node.cordoned, node.draining, node.reason = False, False, ""


# --- settings ---


def _on_queues_changed(state: State, event: queues.QueuesChanged, at: float, id: str) -> None:
    state.queues = list(event.queues)


def _on_reserved(state: State, event: queues.ReservationMade, at: float, id: str) -> None:
    state.reservations[event.reservation] = event


def _on_reservation_ended(state: State, event: queues.ReservationEnded, at: float, id: str) -> None:
    state.reservations.pop(event.reservation, None)


# --- what is touched, for the journal ---


def _job(journal: Journal, event: Any) -> None:
    journal.jobs[event.job] = None


def _version(journal: Journal, event: models.ModelExported) -> None:
    journal.jobs[event.version.job] = None


def _preemption(journal: Journal, event: tasks.TaskPreempting) -> None:
    journal.jobs[event.job] = None
    if event.by.startswith("deployment/"):
        journal.deployments[event.by.split("/")[1]] = None
    elif event.by:
        journal.jobs[event.by] = None


def _place(journal: Journal, event: Any) -> None:
    journal.nodes[event.node] = None


def _deployment(journal: Journal, event: Any) -> None:
    journal.deployments[event.deployment] = None


def _settings(journal: Journal, event: Any) -> None:
    journal.settings = True


_FOLDS: dict[type[Struct], tuple[Callable[[State, Any, float, str], None], Callable[[Journal, Any], None] | None]] = {
    jobs.JobAdmitted: (_on_admitted, _job),
    jobs.JobRejected: (_on_rejected, _job),
    jobs.JobCancelling: (_on_cancelling, _job),
    jobs.JobCancelled: (_ending("cancelled"), _job),
    jobs.JobFailed: (_on_failed, _job),
    jobs.JobRefused: (_ending("refused"), _job),
    jobs.JobSucceeded: (_ending("succeeded"), _job),
    jobs.JobDeployed: (_on_deployed, _job),
    tasks.TaskPlaced: (state_tasks.on_placed, _job),
    tasks.TaskStarted: (state_tasks.on_sign_of_life, None),  # signs of life move no deadline forward
    tasks.TaskProgressed: (state_tasks.on_progressed, None),
    tasks.TaskCheckpointed: (state_tasks.on_sign_of_life, None),
    tasks.TaskSucceeded: (state_tasks.on_succeeded, _job),
    tasks.TaskFailed: (state_tasks.on_failed, _job),
    tasks.TaskRejected: (state_tasks.on_rejected, _job),
    tasks.TaskRefused: (state_tasks.on_refused, _job),
    tasks.TaskPreempting: (state_tasks.on_preempting, _preemption),
    tasks.TaskCancelled: (state_tasks.on_cancelled, _job),
    tasks.TaskLost: (state_tasks.on_lost, _job),
    nodes.NodeInventoried: (_on_inventoried, _place),
    nodes.WorkerJoined: (_on_joined, _place),
    nodes.WorkerLost: (_on_worker_lost, _place),
    nodes.NodeLost: (_on_node_lost, _place),
    nodes.NodeCordoned: (_on_cordoned, _place),
    nodes.NodeUncordoned: (_on_uncordoned, _place),
    models.ModelExported: (state_deployments.on_exported, _version),
    deployments.DeploymentChanged: (state_deployments.on_changed, _deployment),
    deployments.ReplicaReady: (state_deployments.on_ready, _deployment),
    deployments.ReplicaFailed: (state_deployments.on_replica_failed, _deployment),
    deployments.ReplicaUnloaded: (state_deployments.on_unloaded, _deployment),
    queues.QueuesChanged: (_on_queues_changed, _settings),
    queues.ReservationMade: (_on_reserved, _settings),
    queues.ReservationEnded: (_on_reservation_ended, _settings),
}
