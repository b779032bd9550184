"""A continuous pull: requests for messages are posted ahead of time, and again after anything that lost them.

nats-py has only `fetch`, which costs a round trip per batch. Here one inbox receives everything; the number of
messages asked for and not yet received is tracked, and `pump` asks for what is missing.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress

import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from llmos.errors import LlmosError

EXPIRES_S = 30.0
IDLE_HEARTBEAT_S = 5.0
RETRY_S = 0.25
LEAVE_WITHIN_S = 1.0
_NANO = 1_000_000_000
_HEARTBEAT = "100"


class Pull:
    """Messages of one JetStream consumer. `prepare` makes the consumer and returns its name; it is called at the
    start and whenever the consumer, the stream or the server may have been lost."""

    def __init__(self, nc: Client, stream: str, prepare: Callable[[], Awaitable[str]]) -> None:
        self._nc = nc
        self._stream = stream
        self._prepare = prepare
        self._consumer = ""
        self._inbox = nc.new_inbox()
        self._queue: asyncio.Queue[Msg | None] = asyncio.Queue()
        self._asked: dict[str, int] = {}  # pull id → messages still owed, oldest first
        self._count = 0
        self._heard = 0.0
        self._subscription: Subscription | None = None
        self._lost = True

    @property
    def owed(self) -> int:
        """Messages asked for, or received and not yet taken."""
        return sum(self._asked.values()) + self._queue.qsize()

    def reset(self) -> None:
        """Forget the posted requests; the next `take` makes sure of the consumer and posts new ones."""
        self._lost = True
        self._queue.put_nowait(None)

    def wake(self) -> None:
        """Let a waiting `take` return, so that its caller can ask for more."""
        self._queue.put_nowait(None)

    async def take(self, want: int, timeout: float) -> Msg | None:
        """The next message, with up to `want` asked for ahead; `None` after `timeout` seconds or a `wake`."""
        now = asyncio.get_running_loop().time()
        if self._lost or (self._asked and now - self._heard > 2.5 * IDLE_HEARTBEAT_S):
            await self._recover()
        await self._post(want)
        try:
            return (
                await asyncio.wait_for(self._queue.get(), timeout) if self._queue.empty() else self._queue.get_nowait()
            )
        except TimeoutError:
            return None

    async def close(self) -> None:
        """Stop receiving; messages that are under way are redelivered to somebody else."""
        if self._subscription is not None:
            with suppress(nats.errors.Error):
                await self._subscription.unsubscribe()

    async def leave(self) -> list[Msg]:
        """Stop receiving for good; what has arrived and was not taken, for the caller to give back."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with suppress(nats.errors.Error, TimeoutError):
                async with asyncio.timeout(LEAVE_WITHIN_S):
                    if self._nc.is_connected:
                        await subscription.drain()  # type: ignore[no-untyped-call]
                    else:
                        await subscription.unsubscribe()
        left = [self._queue.get_nowait() for _ in range(self._queue.qsize())]
        return [msg for msg in left if msg is not None]

    async def _recover(self) -> None:
        while True:
            try:
                self._lost = False
                if self._subscription is not None:
                    await self.close()
                self._inbox = self._nc.new_inbox()  # what an old request still brings must not be counted
                self._asked.clear()
                self._subscription = await self._nc.subscribe(f"{self._inbox}.*", cb=self._on_message)
                self._consumer = await self._prepare()
                self._heard = asyncio.get_running_loop().time()
                return
            except (LlmosError, nats.errors.Error):
                if self._nc.is_closed:
                    raise
                await asyncio.sleep(RETRY_S)

    async def _post(self, want: int) -> None:
        missing = want - self.owed
        if missing <= 0:
            return
        self._count += 1
        pull = f"{self._inbox}.{self._count}"
        self._asked[pull] = missing
        if len(self._asked) == 1:
            self._heard = asyncio.get_running_loop().time()
        body = {"batch": missing, "expires": int(EXPIRES_S * _NANO), "idle_heartbeat": int(IDLE_HEARTBEAT_S * _NANO)}
        verb = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        try:
            await self._nc.publish(verb, json.dumps(body).encode(), reply=pull)
        except nats.errors.Error:
            self._lost = True
            await asyncio.sleep(RETRY_S)

    async def _on_message(self, msg: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        status = msg.headers.get("Status") if msg.headers and not msg.data else None
        if status is None:
            for pull, owed in self._asked.items():
                if owed <= 1:
                    del self._asked[pull]
                else:
                    self._asked[pull] = owed - 1
                break
            self._queue.put_nowait(msg)
        elif status != _HEARTBEAT:
            self._asked.pop(msg.subject, None)
            description = (msg.headers or {}).get("Description", "")
            if status == "503" or (status == "409" and "Consumer" in description) or "Leadership" in description:
                self._lost = True
            self._queue.put_nowait(None)
