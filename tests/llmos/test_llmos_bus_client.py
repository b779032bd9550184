"""A flush that was given up leaves the connection as it was."""

import asyncio

from llmos.bus import Bus


async def test_a_connection_still_hears_after_a_flush_was_cancelled(bus: Bus) -> None:
    for _ in range(3):
        flush = asyncio.create_task(bus._nc.flush())
        while not bus._nc._pongs:
            await asyncio.sleep(0)
        flush.cancel()
        await asyncio.wait({flush})
    assert await asyncio.wait_for(bus.last_sequence("EVENTS"), 5) == 0
    await bus._nc.flush(timeout=2)
