"""Following a stream in order, by an ephemeral consumer that is made anew whenever it may be lost."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import msgspec
from msgspec import Struct

from llmos.bus import api
from llmos.bus.client import Client
from llmos.bus.pull import Pull
from llmos.contracts.envelope import Envelope
from llmos.contracts.subjects import event_type
from llmos.errors import Busy, LlmosError
from llmos.ids import new_id

BATCH = 512
_NANO = 1_000_000_000


@cache
def _decode(kind: type[Struct]) -> Callable[[bytes], Any]:
    return msgspec.json.Decoder(kind).decode


class Heard:
    """One stored message: where it was said, its place in the stream, when it was stored (Unix seconds)."""

    __slots__ = ("data", "headers", "pending", "sequence", "subject", "time")

    def __init__(
        self, subject: str, sequence: int, time: float, headers: dict[str, str], data: bytes, pending: int
    ) -> None:
        self.subject = subject
        self.sequence = sequence
        self.time = time
        self.headers = headers
        self.data = data
        self.pending = pending

    @property
    def id(self) -> str:
        """The envelope's id."""
        return self.headers.get("ce-id") or self.envelope.id

    @property
    def envelope(self) -> Envelope:
        return Envelope.from_headers(self.headers, default_id=f"{self.subject}.{self.sequence}")

    def event(self) -> Struct | None:
        """The typed event; `None` when this version does not know the fact or can't read it."""
        kind = event_type(self.subject)
        if kind is None:
            return None
        try:
            event: Struct = _decode(kind)(self.data)
            return event
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


async def follow(
    nc: Client,
    pulls: set[Pull],
    stream: str,
    filters: Sequence[str],
    *,
    start: int,
    last_per_subject: bool,
    ensure: Callable[[], Awaitable[None]],
) -> AsyncGenerator[Heard, None]:
    """Yield every stored message of `filters` from sequence `start` on (0: only new ones), each once and in order.

    A stream that was made anew (it was created at another time) is followed from its beginning; one that lost its
    newest messages (an unclean end of the machine), from where it ends.
    """
    position = start  # the next sequence to hear
    made = ""  # when the stream was created that `position` belongs to
    newest_only = last_per_subject  # until the first message was heard
    heard = False
    name = ""
    expected = 0  # consumer sequence, to notice a gap

    async def prepare() -> str:
        nonlocal name, expected, position, made, newest_only
        await ensure()
        await forget()
        info = await api.request(nc, f"STREAM.INFO.{stream}")
        created, last = str(info["created"]), int(info["state"]["last_seq"])
        if made and created != made:
            position, newest_only = 1, last_per_subject
        elif not made and start == 0:
            position = last + 1
        elif heard:
            position = min(position, last + 1)
        made = created
        name, expected = new_id("follow"), 0
        policy = {"deliver_policy": "by_start_sequence", "opt_start_seq": max(position, 1)}
        config = {
            "name": name,
            "ack_policy": "none",
            "filter_subjects": list(filters) or [">"],
            "inactive_threshold": 60 * _NANO,
            "mem_storage": True,
            "num_replicas": 1,
            "max_deliver": -1,
            **({"deliver_policy": "last_per_subject"} if newest_only else policy),
        }
        await api.request(nc, f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
        return name

    async def forget() -> None:
        if name and nc.is_connected:
            with suppress(LlmosError):
                await api.request(nc, f"CONSUMER.DELETE.{stream}.{name}", timeout=1.0)

    pull = Pull(nc, stream, prepare)
    pulls.add(pull)
    try:
        while not nc.is_closed:
            msg = await pull.take(BATCH, timeout=5.0, below=BATCH // 2)
            if msg is None:
                continue
            # $JS.ACK.[domain.account.]stream.consumer.deliveries.sequence.consumer sequence.nanoseconds.pending[.token]
            ack = msg.reply.split(".")
            consumer, _, sequence, number, stored, pending = ack[3:9] if len(ack) == 9 else ack[5:11]
            if consumer != name:
                continue
            expected += 1
            if int(number) != expected:
                pull.reset()
                continue
            newest_only, heard = False, True
            position = int(sequence) + 1
            yield Heard(msg.subject, position - 1, int(stored) // 1000 / 1e6, msg.headers or {}, msg.data, int(pending))
        raise Busy("the connection to the bus was closed")
    finally:
        pulls.discard(pull)
        await pull.leave()
        await forget()
