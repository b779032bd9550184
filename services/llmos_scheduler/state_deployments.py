"""How the facts about deployments, replicas and registered models change the state."""

from llmos.contracts.deployments import DeploymentChanged, ReplicaFailed, ReplicaReady, ReplicaUnloaded
from llmos.contracts.models import ModelExported
from llmos_scheduler.records import Deployment, Replica, State


def on_exported(state: State, event: ModelExported, at: float, id: str) -> None:
    job = state.jobs.get(event.version.job)
    if job is not None and job.tenant == event.version.tenant:
        job.version = event.version


def on_changed(state: State, event: DeploymentChanged, at: float, id: str) -> None:
    job = state.jobs.get(event.job)
    known = state.deployments.get(event.deployment)
    if known is not None and event.generation <= known.change.generation:
        return
    if not event.nodes:
        wanted = 0
    elif job is not None and job.spec.deploy is not None:
        wanted = job.spec.deploy.replicas
    else:
        wanted = max(known.wanted if known else 0, len(event.nodes))
    if known is None:
        known = state.deployments[event.deployment] = Deployment(event.deployment, event, wanted, at)
    before = known.replicas if known.change.version == event.version else {}
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
        job.moved_by = id or job.moved_by


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
    replica.state, replica.failures, replica.retryable, replica.problem = "ready", 0, True, None
    deployment.progress_at = max(deployment.progress_at, at)
    job = state.jobs.get(deployment.change.job)
    if job is not None and not job.ended:
        job.moved_by = id or job.moved_by


def on_replica_failed(state: State, event: ReplicaFailed, at: float, id: str) -> None:
    _, replica = _replica(state, event)
    if replica is not None:
        replica.state, replica.problem, replica.retryable = "failed", event.problem, event.retryable
        replica.failures += 1


def on_unloaded(state: State, event: ReplicaUnloaded, at: float, id: str) -> None:
    deployment = state.deployments.get(event.deployment)
    if deployment is not None and event.generation >= deployment.leaving.get(event.node, event.generation + 1):
        del deployment.leaving[event.node]


def node_stopped_serving(state: State, node: str) -> None:
    """Nothing serves on the node any more: its replicas have to come up again before they count."""
    for deployment in state.deployments.values():
        replica = deployment.replicas.get(node)
        if replica is not None and replica.state == "ready":
            replica.state = "assigned"
