"""What the service tells a child to do, and what a child tells the service: JSON over the child's channel."""

import msgspec
from msgspec import Struct

from llmos.contracts.jobs import Bound
from llmos.contracts.models import Candidate
from llmos.errors import Problem


class ExportOrder(Struct, frozen=True):
    """Make the artifact of a trained model in the new folder `result`.

    `model` and `dataset` are the folders of those trees, `work` is for what lies between. `max_length` 0 is what the
    model can read. `source`, `base` and
    `dataset_address` are addresses, for the record. `threads` are CPU threads.
    """

    task: str
    precision: str
    model: str
    dataset: str
    work: str
    result: str
    max_length: int
    threads: int
    gate: dict[str, Bound]
    source: str
    base: str
    dataset_address: str
    target: str = "cpu"


class Progressed(Struct, frozen=True, omit_defaults=True, tag="progressed"):
    """The share (0–1) of a phase that is done."""

    phase: str
    share: float = 0.0


class Finished(Struct, frozen=True, tag="finished"):
    """The artifact lies in `result`; what was measured of it and of the trained model. Sizes in bytes, times in ms."""

    labels: list[str]
    source: dict[str, float]
    metrics: dict[str, float]
    parity: dict[str, float]
    size: int
    source_size: int
    precision: str = "fp32"
    candidates: list[Candidate] = []


class Failed(Struct, frozen=True, tag="failed"):
    """There is no artifact; `problem` says why."""

    problem: Problem
    retryable: bool


Report = Progressed | Finished | Failed

_reports: msgspec.json.Decoder[Report] = msgspec.json.Decoder(Report)


def decode_report(data: bytes) -> Report:
    """Read what a child sent."""
    return _reports.decode(data)
