"""Deployments: on which nodes a version should serve, when a job's deployment is complete, and what follows a loss.

One replica a node. A newer version goes to the same nodes first. A job that can't be deployed leaves behind what served
before it. Replicas that lease hardware (`deploy.resources`) get their nodes from the planner: `wishes` says how many
are missing, `grant` puts them where the planner found room. Pure, and part of `core.decide`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import inf

import msgspec

from llmos.contracts.deployments import DeploymentChanged, ReplicaAssigned
from llmos.contracts.jobs import JobDeployed, JobFailed, ResourceRequest
from llmos.contracts.models import ModelVersion
from llmos.errors import Problem
from llmos_scheduler.cluster import WHOLE
from llmos_scheduler.effects import AssignReplica, Command, Effect, Emit
from llmos_scheduler.records import Deployment, Job, Replica, State
from llmos_scheduler.resources import Request, request_of
from llmos_scheduler.serving import choose, short, staying

STUCK_S = 120.0  # a rollout without any progress for so long fails
MAX_FAILURES = 3  # of one replica; the inferencer tries again by itself until then


def advance(state: State, job: Job, now: float, since: float) -> tuple[list[Effect], float]:
    """Bring the version of a job up whose export succeeded: begin, wait, and say `JobDeployed` or `JobFailed`. And when
    to look again if nothing happens."""
    deploy, version = job.spec.deploy, job.version
    if deploy is None or version is None or ahead(state, job) is not None:
        return [], inf
    deployment = state.deployments.get(deploy.name)
    if deployment is None or deployment.change.job != job.id:
        change = _begin(state, job, version, deployment)
        if change is not None:
            return [_emit(job, change)], inf
    elif deployment.ready:
        deployed = JobDeployed(job.id, job.tenant, version.model, version.version, sorted(deployment.replicas))
        return [Emit(deployed, f"{job.id}.deployed", job.moved_by, job.traceparent)], inf
    else:
        broken = next((replica for replica in deployment.replicas.values() if _hopeless(replica)), None)
        if broken is not None:
            return [_failed(job, _broken(broken))], inf
    stuck = max(job.exported_at or 0.0, deployment.progress_at if deployment else 0.0, since) + STUCK_S
    if now >= stuck:
        remedy = "Start an inferencer on another node, or ask for fewer replicas."
        return [_failed(job, Problem("not_deployed", obstacle(state, job), remedy))], inf
    return [], stuck


def _begin(state: State, job: Job, version: ModelVersion, known: Deployment | None) -> DeploymentChanged | None:
    """The first change that a job makes to its deployment, once there is a node for it."""
    deploy = job.spec.deploy
    assert deploy is not None
    generation = known.change.generation + 1 if known else 1
    if deploy.resources is None:
        nodes = choose(state, known, version, deploy.replicas, deploy.spread)
        if not nodes:
            return None
        return DeploymentChanged(deploy.name, job.tenant, generation, job.id, version, nodes, spread=deploy.spread)
    wish = _first_wish(state, job)
    if wish is None or not wish.leases:
        return None
    return _granted(state, wish, {})


def keep(state: State, deployment: Deployment) -> list[Emit]:
    """Keep a deployment as it should be: undo what failed, move off lost nodes."""
    change = deployment.change
    if _undone(state, deployment) or _broken_shift(deployment):
        return [_undo(state, deployment)]
    if change.resources is None and short(state, deployment) and not _replaced(state, deployment):
        nodes = choose(state, deployment, change.version, deployment.wanted, change.spread)
        if set(nodes) != set(change.nodes):
            again = msgspec.structs.replace(change, generation=change.generation + 1, nodes=nodes)
            return [_emit(state.jobs.get(change.job), again)]
    return []


def ahead(state: State, job: Job) -> Job | None:
    """The job whose rollout to the same deployment has to end, or to be undone, before this job's can begin."""
    name = job.spec.deploy.name if job.spec.deploy else ""
    deployment = state.deployments.get(name)
    if deployment is not None:
        if deployment.change.job == job.id:
            return None
        owner = state.jobs.get(deployment.change.job)
        if owner is not None and (not owner.ended or _undone(state, deployment)):
            return owner
    for id in state.claims.get(name, ()):
        if id == job.id:
            return None
        if state.jobs[id].current is None:
            return state.jobs[id]
    return None


# --- replicas that lease hardware ---


@dataclass(frozen=True, slots=True)
class Wish:
    """What a deployment should become: `missing` replicas more than the `leases` that can stay (GPU ids by node)."""

    name: str
    job: str
    tenant: str
    version: ModelVersion
    resources: ResourceRequest
    request: Request
    replicas: int
    number: int
    queue: str
    priority: int
    spread: str = ""
    submitted_at: float = 0.0
    leases: Mapping[str, list[str]] = field(default_factory=dict)

    @property
    def missing(self) -> int:
        return self.replicas - len(self.leases)


def wish(state: State, name: str) -> Wish | None:
    """What is to become of a deployment whose replicas lease hardware, `None` if nothing of it waits for a node."""
    deployment = state.deployments.get(name)
    for id in state.claims.get(name, ()):
        job = state.jobs[id]
        mine = deployment is not None and deployment.change.job == job.id
        if job.current is None and not mine and ahead(state, job) is None and job.cancelling_at is None:
            return _first_wish(state, job)
    if deployment is None or deployment.request is None or _undone(state, deployment) or _replaced(state, deployment):
        return None
    change = deployment.change
    owner = state.jobs.get(change.job)
    if change.resources is None:
        return None
    return Wish(
        name, change.job, change.tenant, change.version, change.resources, deployment.request, deployment.wanted,
        deployment.number, change.queue, change.priority, change.spread,
        owner.submitted_at if owner else 0.0, staying(state, deployment),
    )  # fmt: skip


def _first_wish(state: State, job: Job) -> Wish | None:
    """What a job's deployment should become, before it has changed anything."""
    deploy, version = job.spec.deploy, job.version
    if deploy is None or version is None or deploy.resources is None:
        return None
    deployment, request = state.deployments.get(deploy.name), request_of(deploy.resources)
    held = staying(state, deployment) if deployment is not None and deployment.request == request else {}
    kept = dict(list(held.items())[: deploy.replicas])
    return Wish(
        deploy.name, job.id, job.tenant, version, deploy.resources, request, deploy.replicas, job.number,
        job.spec.queue, job.spec.priority, deploy.spread, job.submitted_at, kept,
    )  # fmt: skip


def grant(state: State, wish: Wish, found: Mapping[str, list[str]]) -> Emit:
    """The change that puts replicas on the nodes that were found, with the ids of their GPUs."""
    return _emit(state.jobs.get(wish.job), _granted(state, wish, found))


def _granted(state: State, wish: Wish, found: Mapping[str, list[str]]) -> DeploymentChanged:
    """Nodes that are away keep their place as long as there are too few others."""
    known = state.deployments.get(wish.name)
    same = known is not None and known.request == wish.request
    away = {node: gpus for node, gpus in known.change.leases.items() if node not in wish.leases} if known else {}
    every = {**wish.leases, **found, **(away if same else {})}
    leases = {node: list(every[node]) for node in list(every)[: wish.replicas]}
    if known is not None and (known.change.job, known.change.version) == (wish.job, wish.version):
        generation = known.change.generation + 1
        return msgspec.structs.replace(known.change, generation=generation, nodes=list(leases), leases=leases)
    return DeploymentChanged(
        wish.name, wish.tenant, known.change.generation + 1 if known else 1, wish.job, wish.version, list(leases),
        wish.resources, leases, wish.spread, wish.replicas, wish.queue, wish.priority,
    )  # fmt: skip


# --- what is missing, and where it could go ---


def obstacle(state: State, job: Job) -> str:
    """Why a job's deployment is not complete, in one sentence."""
    deploy = job.spec.deploy
    if deploy is None:
        return "the job asks for no deployment"
    other = ahead(state, job)
    if other is not None:
        return f"{deploy.name} is being rolled out by job {other.id}, which comes first"
    deployment = state.deployments.get(deploy.name)
    replicas = deployment.replicas if deployment is not None and deployment.change.job == job.id else {}
    up = sum(replica.state == "ready" for replica in replicas.values())
    so_far = f"{up} of {deploy.replicas} replicas of {deploy.name} are ready"
    serving = sorted(node.name for node in state.nodes.values() if node.runs("serve"))
    if deploy.resources is not None and len(replicas) < deploy.replicas <= len(serving):
        return f"{so_far}: {deploy.replicas - len(replicas)} wait for a node with {request_of(deploy.resources)} free"
    if len(serving) < deploy.replicas:
        return f"{so_far}: {', '.join(serving) or 'no node'} can serve, one replica a node"
    late = [
        f"{replica.node} ({replica.problem.message})" if replica.problem else replica.node
        for replica in replicas.values()
        if replica.state != "ready"
    ]
    return f"{so_far}; missing: {', '.join(sorted(late)) or 'all'}"


def _replaced(state: State, deployment: Deployment) -> bool:
    """Whether something else is about to change the deployment: its job's cancel, or the next job's rollout."""
    owner = state.jobs.get(deployment.change.job)
    if owner is not None and not owner.ended:
        return owner.cancelling_at is not None
    return any(state.jobs[id].current is None for id in state.claims.get(deployment.name, ()))


def _undone(state: State, deployment: Deployment) -> bool:
    """Whether the newest change belongs to a job that ended without having deployed it."""
    owner = state.jobs.get(deployment.change.job)
    settled = deployment.settled is not None and deployment.settled.job == deployment.change.job
    return owner is not None and owner.ended in ("failed", "cancelled") and not settled and deployment.wanted > 0


def _broken_shift(deployment: Deployment) -> bool:
    """Whether a version that somebody asked for beside, or instead of, what serves can't be loaded."""
    settled, change = deployment.settled, deployment.change
    return bool(change.by) and settled is not None and any(_hopeless(each) for each in deployment.replicas.values())


def _undo(state: State, deployment: Deployment) -> Emit:
    """Back to what served before; to nothing if there was nothing."""
    before, change = deployment.settled, deployment.change
    generation = change.generation + 1
    failed = state.jobs.get(change.job)
    if before is None:
        return _emit(
            failed, DeploymentChanged(change.deployment, change.tenant, generation, change.job, change.version, [])
        )
    if before.resources is not None:  # on the leases that it still has; the others are wished for
        kept = staying(state, deployment) if before.resources == change.resources else {}
        leases = {node: list(kept[node]) for node in list(kept)[: before.replicas]}
        again = msgspec.structs.replace(before, generation=generation, nodes=list(leases), leases=leases, by="")
        return _emit(failed, again)
    nodes = choose(state, deployment, before.version, len(before.nodes), before.spread) or before.nodes
    return _emit(failed, msgspec.structs.replace(before, generation=generation, nodes=nodes, by=""))


def tell(state: State, deployment: Deployment) -> Iterator[Command]:
    """What the nodes of a deployment have not confirmed yet."""
    change, request = deployment.change, deployment.request
    owner = state.jobs.get(change.job)
    trace = owner.traceparent if owner else ""
    for replica in deployment.replicas.values():
        if replica.state == "assigned":
            present = ReplicaAssigned(
                deployment=change.deployment,
                node=replica.node,
                generation=change.generation,
                version=change.version,
                job=change.job,
                tenant=change.tenant,
                devices=list(change.leases.get(replica.node, ())),
                gpu_milli=request.gpu_milli if request else WHOLE,
                gpu_memory=request.gpu_memory if request else 0,
                canary=change.canary,
                weight=change.weight,
                pinned=change.pinned,
                idle=change.idle,
            )
            yield AssignReplica(present, trace)
    for node, generation in deployment.leaving.items():
        absent = ReplicaAssigned(
            change.deployment, node, generation, desired="absent", job=change.job, tenant=change.tenant
        )
        yield AssignReplica(absent, trace, again=600.0)  # a node that never had it will not say that it let it go


def _hopeless(replica: Replica) -> bool:
    return replica.state == "failed" and (not replica.retryable or replica.failures >= MAX_FAILURES)


def _broken(replica: Replica) -> Problem:
    why = replica.problem or Problem("error", "no reason was given")
    times = f"failed {replica.failures} times" if replica.retryable else "failed for good"
    return Problem(why.code, f"the replica on {replica.node} {times}: {why.message}", why.remedy, why.param)


def _failed(job: Job, problem: Problem) -> Emit:
    return Emit(JobFailed(job.id, job.tenant, problem), f"{job.id}.failed", job.moved_by, job.traceparent)


def _emit(cause: Job | None, change: DeploymentChanged) -> Emit:
    moved_by, trace = (cause.moved_by, cause.traceparent) if cause else ("", "")
    return Emit(change, f"{change.deployment}.{change.generation}.changed", moved_by, trace)
