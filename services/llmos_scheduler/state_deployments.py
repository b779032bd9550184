"""How the facts about deployments, replicas and registered models change the state."""

from llmos.contracts.deployments import DeploymentChanged, ReplicaFailed, ReplicaReady, ReplicaUnloaded
from llmos.contracts.models import ModelExported
from llmos_scheduler.records import Deployment, Replica, State, Vacating
from llmos_scheduler.resources import MOST_REPLICAS, request_of
from llmos_scheduler.serving import serves


def on_exported(state: State, event: ModelExported, at: float, id: str) -> None:
    job = state.jobs.get(event.version.job)
    if job is not None and job.tenant == event.version.tenant:
        job.version = event.version


def on_changed(state: State, event: DeploymentChanged, at: float, id: str) -> None:
    job = state.jobs.get(event.job)
    known = state.deployments.get(event.deployment)
    if known is not None and event.generation <= known.change.generation:
        return
    if event.replicas:
        wanted = event.replicas
    elif not event.nodes:
        wanted = 0
    elif job is not None and job.spec.deploy is not None:
        wanted = job.spec.deploy.replicas
    else:
        wanted = max(known.wanted if known else 0, len(event.nodes))
    if known is None:
        known = state.deployments[event.deployment] = Deployment(event.deployment, event, wanted, at)
    before = known.replicas if known.change.version == event.version else {}
    _lease(state, known, event, at)
    for node in known.change.nodes:
        if node not in event.nodes:
            known.leaving[node] = event.generation
    for node in event.nodes:
        known.leaving.pop(node, None)
    known.replicas = {
        node: Replica(node, failures=before[node].failures if node in before else 0) for node in event.nodes
    }
    known.change, known.wanted, known.progress_at = event, wanted, at
    if job is not None:
        known.number, job.moved_by = job.number, id or job.moved_by


def _lease(state: State, known: Deployment, event: DeploymentChanged, at: float) -> None:
    """Follow what the replicas hold. A replica that goes holds its lease until it has gone."""
    before, now, held = known.change, int(at * 1000), known.request
    request = request_of(event.resources) if event.resources is not None else None
    if held is not None:
        for node, devices in before.leases.items():
            state.usage.change(before.queue, held.amounts, now, -1)
            if node not in event.leases:
                known.vacating[node] = Vacating(held, list(devices), at)
    if request is not None:
        for node in event.leases:
            known.vacating.pop(node, None)
            state.usage.change(event.queue, request.amounts, now)
    known.request = request
    _pass_rooms_on(state, event)


def _pass_rooms_on(state: State, event: DeploymentChanged) -> None:
    """Replicas without a node are numbered from the count of the others: who was asked to make room for one that has a
    node now does so for the next one that has none."""
    whose = f"deployment/{event.deployment}/"
    place = sum(serves(state, node) for node in event.leases) if event.resources is not None else MOST_REPLICAS
    stale = [key for key in state.rooms if key.startswith(whose) and int(key[len(whose) :]) < place]
    nodes = [node for key in stale for node in state.rooms.pop(key) if node not in event.leases]
    if not nodes or place >= event.replicas:
        return
    following = f"{whose}{place}"
    state.rooms[following] = list(dict.fromkeys([*state.rooms.get(following, ()), *nodes]))
    for id in state.leased:
        task = state.jobs[id].current
        if task is not None and task.gives_way in stale:
            task.gives_way = following
            if state.journal is not None:
                state.journal.jobs[id] = None


def _replica(state: State, event: ReplicaReady | ReplicaFailed) -> tuple[Deployment, Replica] | tuple[None, None]:
    """The replica that the event is about, if it speaks of the newest generation."""
    deployment = state.deployments.get(event.deployment)
    if deployment is None or deployment.change.generation != event.generation:
        return None, None
    replica = deployment.replicas.get(event.node)
    return (deployment, replica) if replica is not None else (None, None)


def on_ready(state: State, event: ReplicaReady, at: float, id: str) -> None:
    deployment, replica = _replica(state, event)
    if deployment is None or replica is None:
        return
    if replica.state != "ready":
        deployment.progress_at = max(deployment.progress_at, at)
    replica.state, replica.failures, replica.retryable, replica.problem = "ready", 0, True, None
    job = state.jobs.get(deployment.change.job)
    if job is not None and not job.ended:
        job.moved_by = id or job.moved_by
    elif deployment.ready and deployment.change.by:
        deployment.settle()


def on_replica_failed(state: State, event: ReplicaFailed, at: float, id: str) -> None:
    _, replica = _replica(state, event)
    if replica is not None:
        replica.state, replica.problem, replica.retryable = "failed", event.problem, event.retryable
        replica.failures += 1


def on_unloaded(state: State, event: ReplicaUnloaded, at: float, id: str) -> None:
    deployment = state.deployments.get(event.deployment)
    if deployment is not None and event.generation >= deployment.leaving.get(event.node, event.generation + 1):
        del deployment.leaving[event.node]
        deployment.vacating.pop(event.node, None)


def node_stopped_serving(state: State, node: str) -> None:
    """Nothing serves on the node any more: its replicas have to come up again before they count."""
    for deployment in state.deployments.values():
        deployment.vacating.pop(node, None)
        replica = deployment.replicas.get(node)
        if replica is not None and replica.state == "ready":
            replica.state = "assigned"
