"""Deployments: which node should serve which model version, and which replica does."""

from typing import Literal

from msgspec import Struct

from llmos.contracts.models import ModelVersion
from llmos.errors import Problem


class ReplicaAssigned(Struct, frozen=True, omit_defaults=True):
    """`llmos.deploy.<node>.<model>`, last per subject: the node should serve this version under the name `deployment`.

    `desired` `absent` takes it down. `generation` grows with every change of a deployment.
    """

    deployment: str
    node: str
    generation: int
    desired: Literal["present", "absent"] = "present"
    version: ModelVersion | None = None
    job: str = ""
    tenant: str = "default"


class DeploymentChanged(Struct, frozen=True, omit_defaults=True):
    """The scheduler decided what a deployment should be: this version, on these nodes."""

    deployment: str
    tenant: str
    generation: int
    job: str
    version: ModelVersion
    nodes: list[str]


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
