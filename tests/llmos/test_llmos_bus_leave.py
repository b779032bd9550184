"""A worker that leaves a queue keeps nothing of it."""

import asyncio

import pytest

from llmos.bus import Bus
from llmos.contracts import subjects
from llmos.contracts.inference import InferenceRequested

ACK_WAIT_S = 30.0


@pytest.mark.parametrize("settle_s", [0.0, 0.2])
async def test_what_was_pulled_and_not_taken_goes_to_another_worker_at_once(bus: Bus, settle_s: float) -> None:
    for at in range(20):
        subject = subjects.infer("mood", f"r-{at}")
        await bus.publish(subject, InferenceRequested("c", [str(at)]), type="llmos.inference.requested.v1")
    consumer, filter = subjects.infer_consumer("mood", "interactive")

    async def take(limit: int) -> list[str]:
        taken: list[str] = []
        queue = bus.work(
            "INFER", consumer, filter, InferenceRequested, slots=lambda: 20 - len(taken), ack_wait=ACK_WAIT_S
        )
        async for delivery in queue:
            taken += delivery.body.inputs
            await delivery.ack()
            if len(taken) == limit:
                await asyncio.sleep(settle_s)
                break
        await queue.aclose()  # type: ignore[attr-defined]
        return taken

    first = await take(3)
    async with asyncio.timeout(ACK_WAIT_S / 3):
        rest = await take(17)
    assert sorted(first + rest, key=int) == [str(at) for at in range(20)]
