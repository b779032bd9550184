"""Deployments: which node should serve which model version, and which replica does."""

from typing import Literal

from msgspec import Struct

from llmos.contracts.jobs import ResourceRequest
from llmos.contracts.models import ModelVersion
from llmos.errors import Problem


class ReplicaAssigned(Struct, frozen=True, omit_defaults=True):
    """`llmos.deploy.<node>.<model>`, last per subject: the node should serve this version under the name `deployment`.

    `desired` `absent` takes it down. `generation` grows with every change of a deployment. `devices` are the GPU ids
    that the replica leases (none: it runs on cpus), `gpu_milli` and `gpu_memory` (bytes; 0: all of it) what it may use
    of each.

    `canary` is a second version beside the first: it answers `weight` percent of the requests, always the same ones. A
    `pinned` replica is never unloaded for room; one that had no request for `idle` seconds (0: never) is unloaded until
    the next request comes.
    """

    deployment: str
    node: str
    generation: int
    desired: Literal["present", "absent"] = "present"
    version: ModelVersion | None = None
    job: str = ""
    tenant: str = "default"
    devices: list[str] = []
    gpu_milli: int = 1000
    gpu_memory: int = 0
    canary: ModelVersion | None = None
    weight: int = 0
    pinned: bool = False
    idle: float = 0.0


class DeploymentChanged(Struct, frozen=True, omit_defaults=True):
    """The scheduler decided what a deployment should be: this version, on these nodes.

    With `resources` each node's replica leases them: `leases` has the GPU ids by node. `spread` is the label over whose
    values replicas are spread, `replicas` how many are wanted (0: as the job says), `queue` the one that pays for them.
    `canary`, `weight`, `pinned` and `idle` are as in `ReplicaAssigned`; `by` is who asked for the change, if it was no
    job.
    """

    deployment: str
    tenant: str
    generation: int
    job: str
    version: ModelVersion
    nodes: list[str]
    resources: ResourceRequest | None = None
    leases: dict[str, list[str]] = {}
    spread: str = ""
    replicas: int = 0
    queue: str = "default"
    priority: int = 50
    canary: ModelVersion | None = None
    weight: int = 0
    pinned: bool = False
    idle: float = 0.0
    by: str = ""


class ShiftRequested(Struct, frozen=True, omit_defaults=True):
    """A call to the scheduler: let `version` answer `weight` percent of the requests of a deployment.

    100 makes it the version that serves, less a canary beside that one, 0 takes the canary back. Without a version only
    `pinned` and `idle` change, as far as they are given (see `ReplicaAssigned`).
    """

    deployment: str
    version: ModelVersion | None = None
    weight: int = 100
    pinned: bool | None = None
    idle: float | None = None
    requested_by: str = ""


class RollbackRequested(Struct, frozen=True, omit_defaults=True):
    """A call to the scheduler: take a deployment's canary back or, if there is none, its version for the one before."""

    deployment: str
    requested_by: str = ""


class ReplicaReady(Struct, frozen=True, omit_defaults=True):
    """A replica verified, loaded and warmed the version up and answers requests. Times in seconds, memory in bytes."""

    deployment: str
    tenant: str
    node: str
    generation: int
    model: str
    version: int
    job: str = ""
    load_s: float = 0.0
    memory: int = 0


class ReplicaFailed(Struct, frozen=True, omit_defaults=True):
    """A replica could not be brought up."""

    deployment: str
    tenant: str
    node: str
    generation: int
    problem: Problem
    job: str = ""
    retryable: bool = True


class ReplicaUnloaded(Struct, frozen=True, omit_defaults=True):
    """A replica went away: taken down, replaced by a newer version, or unloaded to make room."""

    deployment: str
    tenant: str
    node: str
    generation: int
    version: int
    reason: str = ""
