"""The whole stack as separate processes, a tiny model and its data, and an outside system that speaks only NATS."""

import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import pytest

from llmos import local
from llmos.testing.otlp import Receiver, otlp_receiver
from material import write_base, write_rows
from outsider import Outsider


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base/`, `train.jsonl`, `validation.jsonl` and `test.jsonl`."""
    folder = tmp_path_factory.mktemp("material")
    write_base(folder / "base")
    for name, rows, seed in (("train", 240, 1), ("validation", 60, 2), ("test", 60, 3)):
        write_rows(folder / f"{name}.jsonl", rows, seed)
    return folder


@pytest.fixture(scope="module")
def telescope() -> Iterator[Receiver]:
    """A real OTLP endpoint that the stack reports to."""
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, material: Path, telescope: Receiver) -> Iterator[local.StackInfo]:
    """Every service as a process of its own; ended at the end of the module."""
    data = tmp_path_factory.mktemp("stack")
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = telescope.url
    os.environ["OTEL_METRIC_EXPORT_INTERVAL"] = "2000"
    try:
        local.up(local.UpOptions(data_dir=data, file_roots=(material,), node="n1", detach=True))
    finally:
        del os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"], os.environ["OTEL_METRIC_EXPORT_INTERVAL"]
    yield local.status(data).stack
    local.down(data)


@pytest.fixture
async def outsider(stack: local.StackInfo, material: Path) -> AsyncIterator[Outsider]:
    """A plain NATS client on the running stack."""
    nc = await nats.connect(stack.nats_url, max_reconnect_attempts=-1, reconnect_time_wait=0.2)
    yield Outsider(nc, material)
    await nc.close()
