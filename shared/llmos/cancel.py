"""Cancelling tasks for certain: Python 3.11's `asyncio.wait_for`, on which nats-py stands, can swallow one request."""

import asyncio
from typing import Any

AGAIN_S = 0.2


async def cancel(*tasks: "asyncio.Future[Any] | None") -> None:
    """Cancel tasks and wait until every one has ended; errors that they end with are dropped, `None` is ignored.

    The request is repeated: when the awaited future is done in the same turn of the loop, `wait_for` returns its
    result and the cancellation is lost (python/cpython#86296, mended in 3.12).
    """
    alive = {task for task in tasks if task is not None}
    while alive:
        for task in alive:
            task.cancel()
        done, alive = await asyncio.wait(alive, timeout=AGAIN_S)
        for task in done:
            if not task.cancelled():
                task.exception()  # retrieved, so that the loop does not complain of it
