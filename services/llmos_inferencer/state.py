"""What should be served on this node, and what is: two tables that change by facts alone.

`heard` keeps the newest assignment of every deployment; the other functions keep one `Replica` a deployment. The
same functions run at start (DEPLOY is read again, last per subject) and afterwards.
"""

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.models import ModelVersion


class Lease(Struct, frozen=True):
    """The GPUs that a replica may use (none: it runs on CPUs), and how much memory of each in bytes (0: all)."""

    devices: tuple[str, ...] = ()
    memory: int = 0


def lease_of(assigned: ReplicaAssigned) -> Lease:
    """What an assignment leases."""
    return Lease(tuple(assigned.devices), assigned.gpu_memory)


Desired = dict[str, ReplicaAssigned]

FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0


class Replica(Struct, frozen=True):
    """A deployment as it stands in this process.

    `generation` is the newest one acted on; `version` is what answers requests (`None` before the first one is
    up), also while a newer one is brought up beside it and after that failed; `canary` is what answers some of them,
    and `lease` where both run. `failures` in a row; `retry_at` is `None` when trying again can't help.
    """

    deployment: str
    generation: int
    status: Literal["bringing", "ready", "failed", "absent"] = "bringing"
    version: ModelVersion | None = None
    canary: ModelVersion | None = None
    lease: Lease = Lease()
    failures: int = 0
    retry_at: float | None = None


Actual = dict[str, Replica]


def heard(desired: Desired, assigned: ReplicaAssigned) -> Desired:
    """The newest generation of a deployment wins, whatever order they are heard in."""
    known = desired.get(assigned.deployment)
    if known is not None and known.generation > assigned.generation:
        return desired
    return {**desired, assigned.deployment: assigned}


def began(actual: Actual, assigned: ReplicaAssigned) -> Actual:
    """A generation is being brought up; what served before goes on serving."""
    old = actual.get(assigned.deployment)
    if old is not None and old.generation == assigned.generation:
        new = replace(old, status="bringing")
    else:
        new = Replica(
            assigned.deployment,
            assigned.generation,
            version=old.version if old else None,
            canary=old.canary if old else None,
            lease=old.lease if old else Lease(),
        )
    return {**actual, assigned.deployment: new}


def came_up(actual: Actual, assigned: ReplicaAssigned) -> Actual:
    """The assigned version answers requests."""
    return {
        **actual,
        assigned.deployment: Replica(
            assigned.deployment, assigned.generation, "ready", assigned.version, assigned.canary, lease_of(assigned)
        ),
    }


def failed(
    actual: Actual,
    assigned: ReplicaAssigned,
    *,
    retryable: bool,
    now: float,
    version: ModelVersion | None,
    canary: ModelVersion | None = None,
) -> Actual:
    """A generation could not be brought up; `version` and `canary` are what serves all the same.

    The next try comes after 0.5 s, then twice as long each time, at most 30 s.
    """
    old = actual[assigned.deployment]
    failures = old.failures + 1
    wait = min(FIRST_RETRY_S * 2 ** min(failures - 1, 16), LAST_RETRY_S)
    new = replace(
        old,
        generation=assigned.generation,
        status="failed",
        version=version,
        canary=canary,
        failures=failures,
        retry_at=now + wait if retryable else None,
    )
    return {**actual, assigned.deployment: new}


def taken_down(actual: Actual, assigned: ReplicaAssigned) -> Actual:
    """Nothing of the deployment is left in this process."""
    return {**actual, assigned.deployment: Replica(assigned.deployment, assigned.generation, "absent")}


def asked_again(actual: Actual, assigned: ReplicaAssigned) -> Actual:
    """Who assigns a generation a second time has not heard what became of it: it counts as not acted on yet."""
    have = actual.get(assigned.deployment)
    if have is None or have.generation != assigned.generation or have.status == "bringing":
        return actual
    return {**actual, assigned.deployment: replace(have, generation=assigned.generation - 1)}
