"""Which version of a deployment answers how many of its requests, as somebody asks for it: the change that follows, or
why it is refused. Pure; `None` is the answer to what is so already.
"""

from msgspec.structs import replace

from llmos.contracts.deployments import DeploymentChanged, RollbackRequested, ShiftRequested
from llmos.contracts.models import ModelVersion
from llmos.errors import Busy, NotFound, Rejected
from llmos_scheduler.records import Deployment, State

ALL = 100


def shift(state: State, request: ShiftRequested) -> DeploymentChanged | None:
    """Let a version answer a share of the requests; change how replicas are kept.

    Raises `NotFound` for no deployment, `Busy` while a job rolls it out, `Rejected` for a version that can't serve
    there.
    """
    deployment = _deployment(state, request.deployment)
    change = deployment.change
    wanted = change
    if request.version is not None:
        _check(change, request.version, request.weight)
        if request.weight == ALL or (request.version == change.version and request.weight > 0):
            wanted = replace(wanted, version=request.version, canary=None, weight=0)
        elif request.weight == 0:
            wanted = replace(wanted, canary=None, weight=0)
        else:
            wanted = replace(wanted, canary=request.version, weight=request.weight)
    if request.pinned is not None:
        wanted = replace(wanted, pinned=request.pinned)
    if request.idle is not None:
        if request.idle < 0:
            raise Rejected(f"idle is {request.idle:g} s", remedy="Give seconds; 0 never unloads.", param="idle")
        wanted = replace(wanted, idle=request.idle)
    return _changed(change, wanted, request.requested_by)


def rollback(state: State, request: RollbackRequested) -> DeploymentChanged | None:
    """Take the canary back, or the version for the one before. Raises as `shift`; `Rejected` when there is none."""
    deployment = _deployment(state, request.deployment)
    change = deployment.change
    if change.canary is not None:
        return _changed(change, replace(change, canary=None, weight=0), request.requested_by)
    served = deployment.settled
    before = served if served is not None and served.version != change.version else deployment.before
    if before is None:
        raise Rejected(
            f"{change.deployment} never served another version", remedy="Name one: llmos deploy NAME --version N."
        )
    return _changed(change, replace(change, version=before.version), request.requested_by)


def _deployment(state: State, name: str) -> Deployment:
    deployment = state.deployments.get(name)
    if deployment is None or not deployment.change.nodes:
        raise NotFound(f"nothing is deployed as {name!r}", remedy="See `llmos get deployments`.", param="deployment")
    owner = state.jobs.get(deployment.change.job)
    if owner is not None and not owner.ended:
        raise Busy(f"{name} is being rolled out by job {owner.id}", remedy="Wait for its end, or cancel it.")
    return deployment


def _check(change: DeploymentChanged, version: ModelVersion, weight: int) -> None:
    if version.tenant != change.tenant:
        raise Rejected(
            f"{version.model} version {version.version} belongs to {version.tenant}, {change.deployment} to "
            f"{change.tenant}",
            param="version",
        )
    if version.task != change.version.task:
        raise Rejected(
            f"{change.deployment} serves {change.version.task}, version {version.version} of {version.model} is for "
            f"{version.task}",
            remedy="Deploy it under another name.",
            param="version",
        )
    if not 0 <= weight <= ALL:
        raise Rejected(f"weight is {weight}", remedy="Give percent, 0 to 100.", param="weight")


def _changed(now: DeploymentChanged, wanted: DeploymentChanged, by: str) -> DeploymentChanged | None:
    if wanted == now:
        return None
    return replace(wanted, generation=now.generation + 1, by=by or "somebody")
