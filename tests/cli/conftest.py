"""The real entry point as a process, against a real bus with scripted peers."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmos.bus import Bus
from llmos.testing.commands import Commands
from llmos.testing.scripted import ScriptedScheduler, playing


@pytest.fixture
async def llmos(tmp_path: Path) -> AsyncIterator[Commands]:
    """Runs commands where no stack is known."""
    commands = Commands(tmp_path)
    yield commands
    await commands.close()


@pytest.fixture
async def scheduler(bus: Bus, nats_url: str, llmos: Commands) -> AsyncIterator[ScriptedScheduler]:
    """A scripted scheduler; commands find its bus by LLMOS_NATS_URL."""
    llmos.env["LLMOS_NATS_URL"] = nats_url
    scheduler = ScriptedScheduler(bus)
    async with playing(scheduler):
        yield scheduler


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    """A job whose data lies beside it."""
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": "b"}\n' * 10)
    file = tmp_path / "job.yaml"
    data = "data:\n  train: rows.jsonl\n"
    file.write_text(f"name: intents\nmodel:\n  base: hf:org/model\n{data}train:\n  learning_rate: 5e-5\n")
    return file
