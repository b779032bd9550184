"""Taking messages of a work queue: as many as there is room for, kept ours while they wait, buried when bad."""

import asyncio
import base64
import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any, Protocol, TypeVar, cast

import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from llmos.bus import api
from llmos.bus.client import Client, reaching
from llmos.bus.delivery import Delivery
from llmos.bus.pull import Pull
from llmos.cancel import cancel
from llmos.contracts.dead import DeadLetter
from llmos.errors import Busy, LlmosError, Rejected

T = TypeVar("T")
FULL_S = 0.1  # how soon a full worker looks again whether it has room; sooner after an ack
FULL_LEAST_S = 0.001
FORGET_AFTER_S = 86_400.0  # the consumer of a worker that is gone for so long; the messages stay
_NANO = 1_000_000_000
_log: Any = structlog.get_logger("llmos.bus")


class Bury(Protocol):
    """Copy a message of a consumer to DEAD and end it."""

    async def __call__(self, stream: str, consumer: str, msg: Msg, reason: str) -> None: ...


class Queue(Struct, frozen=True):
    """What to take: a durable consumer `name` of `stream` over `filter`. `ack_wait` in seconds."""

    stream: str
    name: str
    filter: str
    max_deliver: int
    ack_wait: float


async def work(
    nc: Client,
    pulls: set[Pull],
    queue: Queue,
    kind: type[T],
    *,
    slots: Callable[[], int],
    ensure: Callable[[], Awaitable[None]],
    bury: Bury,
) -> AsyncGenerator[Delivery[T], None]:
    """Deliver what `slots()` has room for; nothing while it is 0 or less, though messages may be at hand."""

    async def prepare() -> str:
        await ensure()
        await api.request(
            nc,
            f"CONSUMER.CREATE.{queue.stream}.{queue.name}.{queue.filter}",
            {"stream_name": queue.stream, "config": _consumer(queue)},
        )
        return queue.name

    decode = bytes if kind is bytes else msgspec.json.Decoder(kind).decode
    pull = Pull(nc, queue.stream, prepare)
    pulls.add(pull)
    keeper = asyncio.create_task(_keep(pull, queue.ack_wait / 3))
    nap = FULL_S
    try:
        while not nc.is_closed:
            room = slots()
            if room <= 0:
                nap = FULL_LEAST_S if await pull.pause(nap) else min(2 * nap, FULL_S)
                continue
            msg = await pull.take(room, timeout=1.0)
            if msg is None:
                continue
            try:
                body = cast(T, decode(_readable(msg, queue)))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Rejected) as error:
                what = "" if isinstance(error, Rejected) else f"not a {getattr(kind, '__name__', kind)}: "
                with suppress(LlmosError):  # it can't be copied now: it comes again
                    await bury(queue.stream, queue.name, msg, f"{what}{error}")
                continue
            yield Delivery(
                msg,
                body,
                ack_wait=queue.ack_wait,
                done=pull.wake,
                bury=lambda m, why: bury(queue.stream, queue.name, m, why),
            )
        raise Busy("the connection to the bus was closed")
    finally:
        pulls.discard(pull)
        await cancel(keeper)
        for msg in await pull.leave():  # others need not wait until its ack wait is over
            with suppress(Busy), reaching("a nak"):
                await msg.nak()


def _consumer(queue: Queue) -> dict[str, Any]:
    return {
        "durable_name": queue.name,
        "name": queue.name,
        "filter_subject": queue.filter,
        "ack_policy": "explicit",
        "ack_wait": int(queue.ack_wait * _NANO),
        "max_deliver": -1,
        "max_ack_pending": 10_000,
        "max_waiting": 4096,  # can't be changed on a consumer that exists
        "deliver_policy": "all",
        "replay_policy": "instant",
        "inactive_threshold": int(FORGET_AFTER_S * _NANO),
    }


def _readable(msg: Msg, queue: Queue) -> bytes:
    if msg.metadata.num_delivered > queue.max_deliver:
        raise Rejected(f"delivered {queue.max_deliver} times and never finished")
    if "\ufffd" in msg.subject:
        raise Rejected("its subject is not UTF-8")
    return msg.data


async def _keep(pull: Pull, every: float) -> None:
    """Tell the queue that what is at hand and not yet taken is in hand."""
    while True:
        await asyncio.sleep(every)
        for msg in pull.arrived:
            with suppress(Busy), reaching("a sign of progress"):
                await msg.in_progress()


def dead_letter(stream: str, consumer: str, msg: Msg, reason: str, *, whole: bool = True) -> tuple[str, bytes]:
    """The id and the JSON of a message's dead letter; without payload and headers unless `whole`."""
    meta = msg.metadata
    if not whole:
        digest = hashlib.sha256(msg.data).hexdigest()
        reason = f"{reason}. Its {len(msg.data)} bytes (sha256 {digest}) are too large to be kept"
    letter = DeadLetter(
        stream=stream,
        consumer=consumer,
        subject=msg.subject,
        sequence=meta.sequence.stream,
        deliveries=meta.num_delivered,
        reason=reason,
        headers=dict(msg.headers or {}) if whole else {},
        data=base64.b64encode(msg.data).decode() if whole else "",
    )
    id = f"dead.{stream}.{meta.sequence.stream}.{int(meta.timestamp.timestamp() * 1000)}"
    return id, msgspec.json.encode(letter)
