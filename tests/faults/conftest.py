"""A stack of its own for tests that kill its processes."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import nats
import pytest

from llmos import local
from material import write_base, write_rows
from outsider import Outsider


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base/`, `train.jsonl`, `validation.jsonl` and `test.jsonl`."""
    folder = tmp_path_factory.mktemp("material")
    write_base(folder / "base")
    for name, rows, seed in (("train", 640, 1), ("validation", 60, 2), ("test", 60, 3)):
        write_rows(folder / f"{name}.jsonl", rows, seed)
    return folder


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, material: Path) -> Iterator[local.StackInfo]:
    """Every service as a process of its own; ended at the end of the module."""
    data = tmp_path_factory.mktemp("stack")
    local.up(local.UpOptions(data_dir=data, file_roots=(material,), node="n1", detach=True))
    yield local.status(data).stack
    local.down(data)


@pytest.fixture
async def outsider(stack: local.StackInfo, material: Path) -> AsyncIterator[Outsider]:
    """A plain NATS client on the running stack."""
    nc = await nats.connect(stack.nats_url, max_reconnect_attempts=-1, reconnect_time_wait=0.2)
    yield Outsider(nc, material)
    await nc.close()
