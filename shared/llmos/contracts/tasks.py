"""Tasks: the units of work that a job expands to, handed to workers over the WORK queue, and their facts.

Every fact carries the `lease` under which it happened: the scheduler ignores what a lease that it has ended still says.
"""

from typing import Literal

from msgspec import Struct, field

from llmos.contracts.jobs import Fault, JobSpec
from llmos.errors import Problem

Kind = Literal["check", "train", "export"]
KINDS: tuple[Kind, ...] = ("check", "train", "export")


def kinds_of(spec: JobSpec) -> tuple[Kind, ...]:
    """The tasks of a job in their order: nothing is trained with `method: none`."""
    return KINDS if spec.train.method != "none" else ("check", "export")


class Member(Struct, frozen=True, omit_defaults=True):
    """One node's part of a lease: `devices` are the ids of its GPUs."""

    node: str
    devices: list[str] = field(default_factory=list)


class TaskAssigned(Struct, frozen=True, omit_defaults=True):
    """`llmos.work.<kind>.<node>.<task>`: do this.

    `inputs` maps a role to an artifact address (`sha256:…`): `check` has none; `train` gets `dataset` and `base`;
    `export` gets `dataset`, `base` and `model`. `devices` are the GPU ids leased to the task, `gpu_milli` and
    `gpu_memory` (bytes; 0: all of it) what it may use of each. In a gang every member gets one of `world` assignments;
    `rank` 0 picks host and port and writes them to KV `state`, key `gang.<task>.<lease>`, for the others. Only rank 0
    says progress, checkpoints and success; any rank may say that the task failed or was cancelled, since the lease is
    one.
    """

    task: str
    job: str
    tenant: str
    kind: Kind
    attempt: int
    lease: int
    spec: JobSpec
    inputs: dict[str, str] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    cpus: float = 1.0
    memory: int = 0
    gpu_milli: int = 1000
    gpu_memory: int = 0
    rank: int = 0
    world: int = 1


class TaskPlaced(Struct, frozen=True, omit_defaults=True):
    """The scheduler leased resources of `node` to the task. `lease` only ever grows.

    A gang has `members`, the first of which is `node` with `devices`; each holds these cpus, memory and GPU amounts.
    """

    task: str
    job: str
    tenant: str
    kind: Kind
    attempt: int
    lease: int
    node: str
    cpus: float = 0.0
    memory: int = 0
    devices: list[str] = field(default_factory=list)
    gpu_milli: int = 1000
    gpu_memory: int = 0
    members: list[Member] = field(default_factory=list)


class TaskStarted(Struct, frozen=True, omit_defaults=True):
    """A worker took the task up (again, after a crash: then `resumed_step` says from where)."""

    task: str
    job: str
    tenant: str
    kind: Kind
    lease: int
    node: str
    resumed_step: int | None = None


class TaskProgressed(Struct, frozen=True, omit_defaults=True):
    """How far a task is, at most once a second; also its sign of life (at least every 10 s).

    `fraction` is 0–1, `eta` seconds; `metrics` holds `loss`, `accuracy`, `learning_rate`, `steps_per_second`, ….
    """

    task: str
    job: str
    tenant: str
    kind: Kind
    lease: int
    node: str
    phase: str
    step: int = 0
    steps: int = 0
    epoch: float = 0.0
    fraction: float = 0.0
    eta: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class TaskCheckpointed(Struct, frozen=True, omit_defaults=True):
    """A checkpoint is in the artifact store, complete and verified."""

    task: str
    job: str
    tenant: str
    lease: int
    step: int
    artifact: str


class TaskSucceeded(Struct, frozen=True, omit_defaults=True):
    """The task is done. `outputs` maps a role to an artifact address.

    `check`: `dataset`, `base`; `train`: `model`; `export`: `model` (the ONNX artifact).
    """

    task: str
    job: str
    tenant: str
    kind: Kind
    lease: int
    node: str
    outputs: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class TaskFailed(Struct, frozen=True, omit_defaults=True):
    """The attempt failed. `retryable` says whether another attempt can help."""

    task: str
    job: str
    tenant: str
    kind: Kind
    lease: int
    node: str
    problem: Problem
    retryable: bool = True


class TaskRejected(Struct, frozen=True, omit_defaults=True):
    """`check` found the data or the base model unusable; becomes the job's `JobRejected`."""

    task: str
    job: str
    tenant: str
    lease: int
    node: str
    faults: list[Fault] = field(default_factory=list)


class TaskRefused(Struct, frozen=True, omit_defaults=True):
    """`export` made the artifact and measured it, and the gate said no."""

    task: str
    job: str
    tenant: str
    lease: int
    node: str
    reasons: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)


class TaskPreempting(Struct, frozen=True, omit_defaults=True):
    """The scheduler asks a lease back: the worker saves a checkpoint at its next step, says `TaskCancelled`, and the
    task waits again in its old place, at no cost of an attempt. `by` is the job or deployment that needs the
    hardware."""

    task: str
    job: str
    tenant: str
    kind: Kind
    lease: int
    node: str
    by: str = ""
    reason: str = ""


class TaskCancelled(Struct, frozen=True, omit_defaults=True):
    """The worker stopped the task at a step's boundary because it was told to."""

    task: str
    job: str
    tenant: str
    kind: Kind
    lease: int
    node: str


class TaskLost(Struct, frozen=True, omit_defaults=True):
    """The scheduler gave the lease up: the node was lost or the task gave no sign of life."""

    task: str
    job: str
    tenant: str
    kind: Kind
    lease: int
    node: str
    reason: str


class TaskStopRequested(Struct, frozen=True, omit_defaults=True):
    """`llmos.ctl.stop.<task>`: stop at the next step. Repeated until the task ends; a worker ignores other leases.

    `checkpoint`: the task will go on elsewhere, so the worker saves what is done before it says `TaskCancelled`.
    """

    task: str
    lease: int
    reason: str = ""
    checkpoint: bool = False


class GangMeeting(Struct, frozen=True, omit_defaults=True):
    """KV `state`, key `gang.<task>.<lease>`: rank 0 of a gang waits at `address` and `port` for those who know `token`.

    `resume` is the checkpoint (an artifact address) that all go on from; empty: from the beginning.
    """

    task: str
    lease: int
    address: str
    port: int
    token: str
    resume: str = ""


class CheckpointPointer(Struct, frozen=True, omit_defaults=True):
    """KV `state`, key `checkpoint.<task>`: the newest complete checkpoint of a task, and the one before it, if any.

    Removed with both when the task is done, or some time after its `job` ended.
    """

    task: str
    lease: int
    step: int
    artifact: str
    previous: str = ""
    job: str = ""
