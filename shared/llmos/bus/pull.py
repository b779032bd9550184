"""A continuous pull: requests for messages are posted ahead of time, and again after anything that lost them.

nats-py has only `fetch`, which costs a round trip per batch. Here one inbox receives everything, and one number says
how many messages the posted requests still owe: what they asked for, less what came, less what the server names as
pending when it ends one. It does not matter which request brought a message (the server serves them in turn).
"""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from llmos.bus.client import Client, reaching
from llmos.errors import Busy, LlmosError

EXPIRES_S = 30.0
IDLE_HEARTBEAT_S = 5.0
RETRY_S = 0.25
RETRY_MOST_S = 2.0
LEAVE_WITHIN_S = 1.0
STAND_WITHIN_S = 5.0
_NANO = 1_000_000_000
_HEARTBEAT, _EXPIRED = "100", "408"
_log: Any = structlog.get_logger("llmos.bus")


class Pull:
    """Messages of one JetStream consumer. `prepare` makes the consumer and returns its name; it is called at the
    start and whenever the consumer, the stream or the server may have been lost."""

    def __init__(self, nc: Client, stream: str, prepare: Callable[[], Awaitable[str]]) -> None:
        self._nc = nc
        self._stream = stream
        self._prepare = prepare
        self._consumer = ""
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._arrived: deque[Msg] = deque()
        self._changed = asyncio.Event()
        self._asked = 0  # messages that posted requests still owe
        self._heard = 0.0  # loop time of the last sign of life
        self._expires = 0.0  # loop time at which the newest request is over
        self._made = 0.0  # loop time of the last recovery
        self._lost = True

    @property
    def owed(self) -> int:
        """Messages asked for, or received and not yet taken."""
        return self._asked + len(self._arrived)

    @property
    def arrived(self) -> list[Msg]:
        """Messages received and not yet taken."""
        return list(self._arrived)

    def reset(self) -> None:
        """Forget the posted requests; the next `take` makes sure of the consumer and posts new ones."""
        self._lost = True
        self._changed.set()

    def wake(self) -> None:
        """Let a waiting `take` return, so that its caller can ask for more."""
        self._changed.set()

    async def take(self, want: int, timeout: float, *, below: int = 0) -> Msg | None:
        """The next message; `None` after `timeout` seconds or a `wake`.

        `want` counts messages under way or received; what is missing is asked for, but only when fewer than `below`
        are left (0: always). Raises `Busy` for a closed connection.
        """
        if self._lost or self._silent():
            await self._recover()
        if not below or self.owed < below:
            await self._post(want - self.owed)
        if not self._arrived and not self._lost:  # it may be lost again since we recovered
            await self.pause(timeout)
        return self._arrived.popleft() if self._arrived else None

    async def pause(self, timeout: float) -> bool:
        """Wait for a message, a `wake` or the end of `timeout` seconds; whether it was one of the first two."""
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            return False
        return True

    async def leave(self) -> list[Msg]:
        """Stop receiving for good; what has arrived and was not taken, for the caller to give back."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await self._nc.drop(subscription, LEAVE_WITHIN_S)
        left = self.arrived
        self._arrived.clear()
        return left

    def _silent(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._asked > 0 and (now - self._heard > 2.5 * IDLE_HEARTBEAT_S or now > self._expires)

    async def _recover(self) -> None:
        retry = RETRY_S
        said = False
        if asyncio.get_running_loop().time() - self._made < RETRY_S:  # made a moment ago, and lost again
            await asyncio.sleep(RETRY_S)
        while True:
            self._lost = False
            self._inbox = ""  # what ends the old requests (they end with their consumer) says nothing of the new ones
            try:
                await self._nc.stand(asyncio.get_running_loop().time() + STAND_WITHIN_S)
                self._consumer = await self._prepare()
                await self._subscribe()
                self._made = asyncio.get_running_loop().time()
                return
            except LlmosError as error:
                if self._nc.is_closed:
                    raise Busy("the connection to the bus was closed") from error
                if self._nc.is_connected and not said:
                    said = True
                    _log.warning("nothing can be heard", stream=self._stream, error=str(error))
                await asyncio.sleep(retry)
                retry = min(2 * retry, RETRY_MOST_S)

    async def _subscribe(self) -> None:
        before = self._subscription
        self._inbox = self._nc.new_inbox()
        hear = partial(self._on_message, self._inbox)
        with reaching("a subscription"):
            # Nothing is dropped here: what may come is bounded by what was asked for.
            self._subscription = await self._nc.subscribe(f"{self._inbox}.*", cb=hear, pending_bytes_limit=0)
        self._asked = 0
        if before is not None:  # what the old requests still bring is ours, though it counts no more
            await self._nc.drop(before, LEAVE_WITHIN_S)

    async def _post(self, missing: int) -> None:
        if missing <= 0:
            return
        now = asyncio.get_running_loop().time()
        if self._asked <= 0:
            self._heard = now
        self._asked = max(0, self._asked) + missing
        self._expires = now + EXPIRES_S + IDLE_HEARTBEAT_S
        body = {"batch": missing, "expires": int(EXPIRES_S * _NANO), "idle_heartbeat": int(IDLE_HEARTBEAT_S * _NANO)}
        verb = f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}"
        try:
            await self._nc.publish(verb, json.dumps(body).encode(), reply=f"{self._inbox}.{missing}")
        except nats.errors.Error:
            self._lost = True
            await asyncio.sleep(RETRY_S)

    async def _on_message(self, inbox: str, msg: Msg) -> None:
        current = inbox == self._inbox
        status = None if msg.reply else (msg.headers or {}).get("Status", "")  # a stored message can be acked
        if current:
            self._heard = asyncio.get_running_loop().time()
        if status is None:
            self._asked -= current
            self._arrived.append(msg)
        elif status == _HEARTBEAT or not current:
            return
        elif status == _EXPIRED:
            self._asked -= int((msg.headers or {}).get("Nats-Pending-Messages", 0))
        else:  # the consumer, the stream or the server is gone, or refuses: make sure of it, then ask again
            self._lost = True
        self._changed.set()
