"""What the service tells a child to do, and what a child tells the service: JSON over the child's channel."""

import msgspec
from msgspec import Struct, field

from llmos.contracts.jobs import Fault, TrainSettings
from llmos.errors import Problem

STOP = b"stop"  # end at the next step; what was done since the last checkpoint is lost
DRAIN = b"drain"  # end at the next step, with a checkpoint


class CheckOrder(Struct, frozen=True):
    """Read the files of a job and make its dataset and base trees below `work`.

    `files` maps each split that arrived to the local file, `references` each given split to the reference as its
    sender wrote it. `faults` were found while the references were resolved; `base` is empty when it did not arrive.
    `untrained` jobs export the base as it is; `columns` names the columns of a row's parts by role.
    """

    files: dict[str, str]
    references: dict[str, str]
    faults: list[Fault]
    text: str
    label: str
    base: str
    max_length: int
    work: str
    task: str = "text-classification"
    columns: dict[str, str] = {}
    untrained: bool = False


class GangOrder(Struct, frozen=True, omit_defaults=True):
    """A process's place in a gang of `world`. The first listens at `address` and says the `port`, the others connect to
    it; `token` is what only members of this gang know."""

    rank: int
    world: int
    address: str
    token: str
    port: int = 0


class TrainOrder(Struct, frozen=True, omit_defaults=True):
    """Train on the trees `dataset` and `base`; checkpoints and the model are made below `work`.

    `recipe` names everything that the result depends on: a checkpoint made for another recipe is not resumed.
    `resume` is the folder of a verified checkpoint. `threads` are CPU threads; `device` is `cpu`, `cuda` or `cuda:<n>`
    among those that are visible, of which `gpu_milli` thousandths and `gpu_memory` bytes (0: all) may be used.
    """

    task: str
    recipe: str
    dataset: str
    base: str
    work: str
    settings: TrainSettings
    threads: int = 1
    device: str = "cpu"
    gpu_milli: int = 1000
    gpu_memory: int = 0
    gang: GangOrder | None = None
    checkpoint_every_s: float = 30.0
    resume: str = ""


class Progressed(Struct, frozen=True, omit_defaults=True, tag="progressed"):
    """How far the child is; the fields are those of `TaskProgressed`."""

    phase: str
    step: int = 0
    steps: int = 0
    epoch: float = 0.0
    fraction: float = 0.0
    eta: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)


class Snapshotted(Struct, frozen=True, tag="snapshotted"):
    """A complete checkpoint lies in the folder `path`; the service stores and removes it."""

    step: int
    path: str


class Listening(Struct, frozen=True, tag="listening"):
    """The first process of a gang can be met at `port`."""

    port: int


class Finished(Struct, frozen=True, omit_defaults=True, tag="finished"):
    """Done: `trees` maps a role of the outputs to the folder that holds it (to its address, once it is stored)."""

    trees: dict[str, str]
    metrics: dict[str, float] = field(default_factory=dict)


class Faulted(Struct, frozen=True, tag="faulted"):
    """The data or the base model can't be used."""

    faults: list[Fault]


class Stopped(Struct, frozen=True, tag="stopped"):
    """The child ended before step `step` because it was told to."""

    step: int


class Failed(Struct, frozen=True, tag="failed"):
    """The child can't go on."""

    problem: Problem
    retryable: bool


End = Finished | Faulted | Stopped | Failed
Report = Progressed | Snapshotted | Listening | Finished | Faulted | Stopped | Failed

_reports: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def decode_report(data: bytes) -> Report:
    """Read what a child sent."""
    return _reports.decode(data)
