"""Following a stream in order, by an ephemeral consumer that is made anew whenever it may be lost."""

from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

import msgspec
from msgspec import Struct
from nats.aio.client import Client

from llmos.bus import api
from llmos.bus.pull import Pull
from llmos.contracts.envelope import Envelope
from llmos.contracts.subjects import event_type
from llmos.errors import Busy, LlmosError
from llmos.ids import new_id

BATCH = 512
_NANO = 1_000_000_000


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
    def envelope(self) -> Envelope:
        return Envelope.from_headers(self.headers, default_id=f"{self.subject}.{self.sequence}")

    def event(self) -> Struct | None:
        """The typed event; `None` when this version does not know the fact or can't read it."""
        kind = event_type(self.subject)
        if kind is None:
            return None
        try:
            return msgspec.json.decode(self.data, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


async def follow(
    nc: Client, pulls: set[Pull], stream: str, filters: Sequence[str], start: int, last_per_subject: bool
) -> AsyncIterator[Heard]:
    """Yield every stored message of `filters` from sequence `start` on, each once and in order.

    A stream that was made anew (its newest sequence is smaller than the one last heard) is followed from its beginning.
    """
    position = start  # the next sequence to hear; 0: only new ones
    first = True
    name = ""
    expected = 0  # consumer sequence, to notice a gap

    async def prepare() -> str:
        nonlocal name, expected, position
        if name:
            with suppress(LlmosError):
                await api.request(nc, f"CONSUMER.DELETE.{stream}.{name}", timeout=1.0)
        name, expected = new_id("follow"), 0
        if position == 0 or (not first and position > 1):
            state = (await api.request(nc, f"STREAM.INFO.{stream}"))["state"]
            if position == 0:
                position = int(state["last_seq"]) + 1
            elif int(state["last_seq"]) < position - 1:
                position = 1
        policy = {"deliver_policy": "by_start_sequence", "opt_start_seq": max(position, 1)}
        if last_per_subject and first:
            policy = {"deliver_policy": "last_per_subject"}
        config = {
            "name": name,
            "ack_policy": "none",
            "filter_subjects": list(filters) or None,
            "inactive_threshold": 60 * _NANO,
            "mem_storage": True,
            "num_replicas": 1,
            "max_deliver": -1,
            **policy,
        }
        await api.request(nc, f"CONSUMER.CREATE.{stream}.{name}", {"stream_name": stream, "config": config})
        return name

    pull = Pull(nc, stream, prepare)
    pulls.add(pull)
    try:
        while not nc.is_closed:
            msg = await pull.take(BATCH if pull.owed < BATCH // 2 else 0, timeout=5.0)
            if msg is None:
                continue
            meta = msg.metadata
            if meta.consumer != name:
                continue
            expected += 1
            if meta.sequence.consumer != expected:
                pull.reset()
                continue
            first = False
            position = max(meta.sequence.stream + 1, position) if not last_per_subject else meta.sequence.stream + 1
            yield Heard(
                msg.subject,
                meta.sequence.stream,
                meta.timestamp.timestamp(),
                dict(msg.headers or {}),
                msg.data,
                meta.num_pending,
            )
        raise Busy("the connection to the bus was closed")
    finally:
        pulls.discard(pull)
        await pull.close()
        if name and nc.is_connected:
            with suppress(LlmosError):
                await api.request(nc, f"CONSUMER.DELETE.{stream}.{name}", timeout=1.0)
