"""One message of a work queue, in the hands of the worker that has to finish it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Generic, TypeVar

from nats.aio.msg import Msg

from llmos.bus.client import reaching
from llmos.cancel import cancel
from llmos.contracts.envelope import Envelope
from llmos.errors import Busy

T = TypeVar("T")


class Delivery(Generic[T]):
    """A message that is redelivered to somebody unless it is acked within the consumer's ack wait.

    `deliveries` counts from 1. Effects must be idempotent: a late ack of an earlier delivery completes the message.
    Of `ack`, `nak` and `dead` the first counts; what is said later changes nothing. All raise `Busy` when the
    connection was closed; while it is only away, they are sent when it is back.
    """

    def __init__(
        self,
        msg: Msg,
        body: T,
        *,
        ack_wait: float,
        done: Callable[[], None],
        bury: Callable[[Msg, str], Awaitable[None]],
    ) -> None:
        self._msg = msg
        self._ack_wait = ack_wait
        self._done = done
        self._bury = bury
        self._ended = False
        self.body = body
        self.subject = msg.subject
        self.data = msg.data
        self.headers = dict(msg.headers or {})
        self.sequence = msg.metadata.sequence.stream
        self.deliveries = msg.metadata.num_delivered
        self.time = msg.metadata.timestamp.timestamp()
        self.envelope = Envelope.from_headers(msg.headers, default_id=f"{msg.metadata.stream}.{self.sequence}")

    async def ack(self) -> None:
        """Done: the queue forgets the message. Sent without waiting, so a crash right after it may redeliver."""
        if not self._ended:
            with reaching("an ack"):
                await self._msg.ack()
            self._end()

    async def nak(self, delay: float = 0.0) -> None:
        """Give it back, to be delivered again after `delay` seconds."""
        if not self._ended:
            with reaching("a nak"):
                await self._msg.nak(delay=delay or None)
            self._end()

    async def in_progress(self) -> None:
        """Restart the ack wait."""
        with reaching("a sign of progress"):
            await self._msg.in_progress()

    async def dead(self, reason: str) -> None:
        """Copy the message to DEAD (persisted before the queue forgets it) and end it."""
        if not self._ended:
            await self._bury(self._msg, reason)
            self._end()

    @asynccontextmanager
    async def kept_alive(self) -> AsyncIterator[None]:
        """Keep the message ours for as long as the block runs."""
        beat = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            await cancel(beat)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(self._ack_wait / 3)
            with suppress(Busy):  # a lost connection: the next beat, or the redelivery, mends it
                await self.in_progress()

    def _end(self) -> None:
        self._ended = True
        self._done()
