"""The child process: one export, its phases told over the channel. It knows no bus and no store, only local folders."""

import contextlib
import io
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from llmos.errors import LlmosError, Problem, Rejected
from llmos_exporter.orders import ExportOrder, Failed, Finished, Progressed, Report

# What the template process imports before it forks, so that a child begins at once; other families are imported by it.
_FAMILIES = ("bert", "deberta_v2", "distilbert", "electra", "modernbert", "mpnet", "roberta", "xlm_roberta")
PRELOAD = (
    "llmos_exporter.artifact",
    "llmos_exporter.text_tasks",
    "onnxruntime.quantization",
    *(f"transformers.models.{family}.modeling_{family}" for family in _FAMILIES),
)
# Read by libraries while they are imported: no network, no telemetry, no GPU, and no thread before the fork.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_WAIT_POLICY": "passive",
    "OPENBLAS_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}
TARGET = f"{__name__}:run"

Tell = Callable[[str, float], None]


class Channel(Protocol):
    """What an export needs of `llmos.forking.Channel`."""

    def send(self, message: bytes) -> None: ...


def run(args: bytes, channel: Channel) -> None:
    """Do an `ExportOrder`; the last message is `Finished` or `Failed`. What else goes wrong ends the child."""
    order = msgspec.json.decode(args, type=ExportOrder)
    Path(order.work).mkdir(parents=True)
    tempfile.tempdir = order.work  # what libraries lay aside goes when the rest goes, after kill -9 too
    logging.disable(logging.WARNING)  # exporters warn of what parity will tell

    def send(report: Report) -> None:
        channel.send(msgspec.json.encode(report))

    try:
        report: Report = export(order, lambda phase, share: send(Progressed(phase, share)))
    except LlmosError as error:
        report = Failed(error.problem, retryable=not isinstance(error, Rejected))
    except MemoryError:
        report = Failed(out_of_memory(), retryable=False)
    send(report)


def export(order: ExportOrder, tell: Tell) -> Finished:
    """Export by the order's task. Raises `Rejected`: see `artifact.export`."""
    import torch

    from llmos_exporter import artifact
    from llmos_exporter.tasks import open_source

    torch.set_num_threads(order.threads)
    with contextlib.redirect_stdout(io.StringIO()):  # exporters print their steps
        tell("loading", 0.0)
        return artifact.export(order, open_source(order), tell)


def out_of_memory() -> Problem:
    """The problem of an export that needs more memory than its task was given."""
    return Problem(
        "out_of_memory",
        "the export needs more memory than its task was given",
        remedy="Ask for more in resources.memory.",
        param="resources.memory",
    )
