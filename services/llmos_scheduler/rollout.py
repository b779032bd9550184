"""Deployments: on which nodes a version should serve, when a job's deployment is complete, and what follows a loss.

One replica a node. A newer version goes to the same nodes first. A job that can't be deployed leaves behind what served
before it. Pure, and part of `core.decide`.
"""

from collections.abc import Iterator

from llmos.contracts.deployments import DeploymentChanged, ReplicaAssigned
from llmos.contracts.jobs import JobDeployed, JobFailed
from llmos.contracts.models import ModelVersion
from llmos.errors import Problem
from llmos_scheduler.effects import AssignReplica, Effect, Emit
from llmos_scheduler.records import Deployment, Job, Replica, State

STUCK_S = 120.0  # a rollout without any progress for so long fails
MAX_FAILURES = 3  # of one replica; the inferencer tries again by itself until then


def advance(state: State, job: Job, now: float, since: float) -> Iterator[Effect]:
    """Bring the version of a job up whose export succeeded: begin, wait, and say `JobDeployed` or `JobFailed`."""
    deploy, version = job.spec.deploy, job.version
    if deploy is None or version is None or ahead(state, job) is not None:
        return
    deployment = state.deployments.get(deploy.name)
    if deployment is None or deployment.change.job != job.id:
        nodes = choose(state, deployment, version, deploy.replicas)
        if nodes:
            generation = deployment.change.generation + 1 if deployment else 1
            yield _emit(job, DeploymentChanged(deploy.name, job.tenant, generation, job.id, version, nodes))
            return
    elif deployment.ready:
        deployed = JobDeployed(job.id, job.tenant, version.model, version.version, sorted(deployment.replicas))
        yield Emit(deployed, f"{job.id}.deployed", job.moved_by, job.traceparent)
        return
    else:
        broken = next((replica for replica in deployment.replicas.values() if _hopeless(replica)), None)
        if broken is not None:
            yield _failed(job, _broken(broken))
            return
    if now - max(job.exported_at or 0.0, deployment.progress_at if deployment else 0.0, since) >= STUCK_S:
        remedy = "Start an inferencer on another node, or ask for fewer replicas."
        yield _failed(job, Problem("not_deployed", obstacle(state, job), remedy))


def keep(state: State) -> Iterator[Effect]:
    """Keep every deployment as it should be: undo what failed, move off lost nodes, tell the nodes."""
    for deployment in state.deployments.values():
        change = deployment.change
        owner = state.jobs.get(change.job)
        if _undone(state, deployment):
            yield _undo(state, deployment)
        elif _short(state, deployment) and not _replaced(state, deployment):
            nodes = choose(state, deployment, change.version, deployment.wanted)
            if set(nodes) != set(change.nodes):
                again = DeploymentChanged(
                    change.deployment, change.tenant, change.generation + 1, change.job, change.version, nodes
                )
                yield _emit(owner, again)
        yield from _tell(deployment, owner.traceparent if owner else "")


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
    for other in state.living_jobs():
        if other.id == job.id:
            return None
        if other.current is None and other.spec.deploy is not None and other.spec.deploy.name == name:
            return other
    return None


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
    if len(serving) < deploy.replicas:
        return f"{so_far}: {', '.join(serving) or 'no node'} can serve, one replica a node"
    late = [
        f"{replica.node} ({replica.problem.message})" if replica.problem else replica.node
        for replica in replicas.values()
        if replica.state != "ready"
    ]
    return f"{so_far}; missing: {', '.join(sorted(late)) or 'all'}"


def choose(state: State, deployment: Deployment | None, version: ModelVersion, wanted: int) -> list[str]:
    """Nodes for a version: where the deployment is already, then the others with the fewest replicas.

    When there are too few, the nodes that are away keep their place: they serve again when they come back.
    """
    present = deployment.change.nodes if deployment is not None else []
    able = [name for name in state.nodes if _able(state, name, version)]
    load = dict.fromkeys(able, 0)
    for other in state.deployments.values():
        for name in other.change.nodes:
            if name in load:
                load[name] += 1
    kept = [name for name in present if name in load]
    fresh = sorted((name for name in able if name not in present), key=lambda name: (load[name], name))
    away = [name for name in present if name not in load]
    return (kept + fresh + away)[:wanted]


def _able(state: State, name: str, version: ModelVersion) -> bool:
    node = state.nodes.get(name)
    return node is not None and any(
        worker.alive and "serve" in worker.kinds and (not worker.memory or version.size <= worker.memory)
        for worker in node.workers.values()
    )


def _short(state: State, deployment: Deployment) -> bool:
    """Whether a replica is missing, or on a node that can't serve it."""
    nodes, version = deployment.change.nodes, deployment.change.version
    return len(nodes) < deployment.wanted or not all(_able(state, name, version) for name in nodes)


def _replaced(state: State, deployment: Deployment) -> bool:
    """Whether something else is about to change the deployment: its job's cancel, or the next job's rollout."""
    owner = state.jobs.get(deployment.change.job)
    if owner is not None and not owner.ended:
        return owner.cancelling_at is not None
    return any(
        job.current is None and job.spec.deploy is not None and job.spec.deploy.name == deployment.name
        for job in state.living_jobs()
    )


def _undone(state: State, deployment: Deployment) -> bool:
    """Whether the newest change belongs to a job that ended without having deployed it."""
    owner = state.jobs.get(deployment.change.job)
    settled = deployment.settled is not None and deployment.settled.job == deployment.change.job
    return owner is not None and owner.ended in ("failed", "cancelled") and not settled and deployment.wanted > 0


def _undo(state: State, deployment: Deployment) -> Emit:
    """Back to what served before; to nothing if there was nothing."""
    before, change = deployment.settled, deployment.change
    generation = change.generation + 1
    failed = state.jobs.get(change.job)
    if before is None:
        return _emit(
            failed, DeploymentChanged(change.deployment, change.tenant, generation, change.job, change.version, [])
        )
    nodes = choose(state, deployment, before.version, len(before.nodes)) or before.nodes
    return _emit(
        failed, DeploymentChanged(change.deployment, before.tenant, generation, before.job, before.version, nodes)
    )


def _tell(deployment: Deployment, trace: str) -> Iterator[Effect]:
    """What the nodes of a deployment have not confirmed yet."""
    change = deployment.change
    for replica in deployment.replicas.values():
        if replica.state == "assigned":
            present = ReplicaAssigned(
                deployment=change.deployment,
                node=replica.node,
                generation=change.generation,
                version=change.version,
                job=change.job,
                tenant=change.tenant,
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
