"""A flush that was given up leaves the connection as it was."""

import asyncio

import pytest

from llmos.bus import Bus
from llmos.contracts.jobs import JobCancelled


async def test_a_connection_still_hears_after_a_flush_was_cancelled(bus: Bus) -> None:
    for _ in range(3):
        flush = asyncio.create_task(bus._nc.flush())
        while not bus._nc._pongs:
            await asyncio.sleep(0)
        flush.cancel()
        await asyncio.wait({flush})
    assert await asyncio.wait_for(bus.last_sequence("EVENTS"), 5) == 0
    await bus._nc.flush(timeout=2)


async def test_a_read_that_fails_is_one_line_and_the_connection_is_taken_up_again(
    bus: Bus, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever nats-py did not expect: it must not leave the connection deaf until its pings fail."""

    async def fail(*_: object) -> None:
        raise ZeroDivisionError("unheard of")

    with monkeypatch.context() as patch:
        patch.setattr(bus._nc, "_process_msg", fail)
        asking = asyncio.create_task(bus.emit(JobCancelled("j", "a"), id="j"))
        await asyncio.sleep(0.1)
    async with asyncio.timeout(5):
        assert await asking == 1
    said = capfd.readouterr()
    assert "unheard of" in said.out
    assert "Traceback" not in said.out + said.err
