"""A supervised program: what it writes is kept within bounds, and a disk that is full does not stop it."""

import asyncio
import sys
from pathlib import Path

import pytest

from llmos import supervisor
from llmos.supervisor import Process

PROGRAM = "import time\nfor number in range(2000): print(f'line {number:08d}', flush=True)\ntime.sleep(60)"


async def say_all(log: Path) -> Process:
    """Run the program until all that it says was heard."""
    process = Process("talker", [sys.executable, "-c", PROGRAM], {}, log, lambda *_: None)
    supervising = asyncio.create_task(process.supervise())
    async with asyncio.timeout(20):
        while process.last_line != "line 00001999":
            await asyncio.sleep(0.02)
    await process.stop()
    await supervising
    return process


async def test_a_log_takes_no_more_than_twice_its_bound_and_loses_no_recent_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "LOG_BYTES", 1000)
    await say_all(tmp_path / "talker.log")
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["talker.log", "talker.log.1"]
    assert all(file.stat().st_size <= 1000 for file in files)
    kept = [int(line.split()[1]) for file in reversed(files) for line in file.read_text().splitlines()]
    assert kept == list(range(kept[0], 2000))
    assert len(kept) >= 1000 // 14


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
async def test_a_full_disk_costs_lines_and_not_the_service() -> None:
    await say_all(Path("/dev/full"))
