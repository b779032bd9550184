"""The inferencer as a process: killed, stopped, and what it imports."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

SLOW = 250  # rounds of a model that takes the better part of a second


class Process:
    """`python -m llmos_inferencer` against the stand's bus and store."""

    def __init__(self, stand: Any) -> None:
        config = stand.config
        self._env = os.environ | {
            "LLMOS_NATS_URL": config.nats_url,
            "LLMOS_NODE": config.node,
            "LLMOS_DATA_DIR": str(config.data_dir),
            "LLMOS_ARTIFACTS": config.artifacts,
            "LLMOS_TRUSTED_KEYS": config.trusted_keys,
            "LLMOS_SERVE_THREADS": "1",
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, **settings: str) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "llmos_inferencer", env=self._env | settings, stderr=subprocess.DEVNULL
        )

    async def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()


@pytest.fixture
async def process(stand: Any) -> AsyncIterator[Process]:
    process = Process(stand)
    await process.start()
    yield process
    await process.end(signal.SIGKILL)


async def test_a_request_that_was_being_computed_when_the_process_was_killed_is_answered_by_the_next(
    stand: Any, process: Process
) -> None:
    assigned = await stand.deploy(await stand.register(rounds=SLOW))
    await stand.ready(assigned)
    took = (await stand.ask("good", "bad")).compute_ms / 1000
    asked = [asyncio.create_task(stand.ask("good", "bad", within=40)) for _ in range(5)]
    await asyncio.sleep(took / 4)
    await process.end(signal.SIGKILL)
    assert not all(task.done() for task in asked)
    stand.events.clear()
    await process.start()
    await stand.ready(assigned)
    for task in asked:
        assert [output.label for output in (await task).outputs] == ["up-1", "down-1"]


async def test_a_terminated_process_ends_well_and_in_time_with_requests_in_its_hands(
    stand: Any, process: Process
) -> None:
    await stand.ready(await stand.deploy(await stand.register(rounds=SLOW)))
    took = (await stand.ask("good")).compute_ms / 1000
    asked = [asyncio.create_task(stand.ask("good", within=40))]
    await asyncio.sleep(took / 4)
    asked += [asyncio.create_task(stand.ask("bad", within=40)) for _ in range(20)]
    async with asyncio.timeout(stand.config.drain_s + 2):
        assert await process.end(signal.SIGTERM) == 0
    assert [output.label for output in (await asked[0]).outputs] == ["up-1"]
    for task in asked:
        task.cancel()


async def test_a_file_that_is_no_trust_file_stops_the_process_with_the_status_of_a_bad_setting(
    stand: Any, process: Process
) -> None:
    await process.end(signal.SIGKILL)
    (stand.folder / "wrong.json").write_text('{"keys": {"vault-1": "not a key"}}')
    await process.start(LLMOS_TRUSTED_KEYS=str(stand.folder / "wrong.json"))
    assert await process.end(signal.SIGCONT) == 78


def test_serving_imports_neither_torch_nor_what_only_a_private_model_or_a_trainer_needs() -> None:
    forbidden = ["torch", "transformers", "huggingface_hub", "tink", "minio", "onnx", "requests", "pyarrow"]
    code = f"import sys, llmos_inferencer.service; print([m for m in {forbidden} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"
