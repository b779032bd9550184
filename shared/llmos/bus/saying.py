"""Saying things on the bus: what every message carries, and the verbs that publish."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from llmos.bus import api
from llmos.bus.client import Client, reaching
from llmos.bus.store import Ack, Fence, Message, refusal, store, store_many
from llmos.clock import Clock, rfc3339
from llmos.contracts import subjects
from llmos.contracts.envelope import Envelope
from llmos.errors import LlmosError, Rejected
from llmos.ids import new_id
from llmos.telemetry import traceparent

MAX_PAYLOAD = 512 * 1024
PERSIST_WITHIN_S = 30.0


class Saying:
    """The verbs of a `Bus` that say something. `source` is `<service>/<node>`."""

    def __init__(self, nc: Client, source: str, clock: Clock) -> None:
        self._nc = nc
        self._source = source
        self._clock = clock
        self._ensuring = asyncio.Lock()

    async def emit(
        self, event: Struct, *, id: str = "", cause: str = "", traceparent: str = "", fence: Fence | None = None
    ) -> int:
        """Publish a fact to the history; its sequence in EVENTS. Stored once per `id` when it returns.

        Retried under one id while the bus is away. Raises `Busy` after 30 s: the fact may or may not be stored.
        `Conflict` when the fence's condition does not hold (any more).
        """
        return await self._store_one(self.fact(event, id=id, cause=cause, traceparent=traceparent, fence=fence))

    def fact(
        self, event: Struct, *, id: str = "", cause: str = "", traceparent: str = "", fence: Fence | None = None
    ) -> Message:
        """A fact for `store_many`. Raises `Rejected` when it is too large."""
        subject, type = subjects.event_subject(event), subjects.event_row(event).ce_type
        return self.message(subject, event, type=type, id=id, cause=cause, traceparent=traceparent, fence=fence)

    async def publish(
        self,
        subject: str,
        body: Any,
        *,
        type: str,
        id: str = "",
        cause: str = "",
        traceparent: str = "",
        ttl: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> int:
        """Publish to a stream; the message's sequence there. The promise is `emit`'s. `ttl` in seconds, at least 1.

        Raises `Busy` at once when the stream is full, `Rejected` when it refuses the message or that is too large.
        """
        message = self.message(subject, body, type=type, id=id, cause=cause, traceparent=traceparent, ttl=ttl)
        message.headers.update(headers or {})
        return await self._store_one(message)

    def message(
        self,
        subject: str,
        body: Any,
        *,
        type: str,
        id: str = "",
        cause: str = "",
        traceparent: str = "",
        ttl: float | None = None,
        fence: Fence | None = None,
    ) -> Message:
        """A message for `store_many`. Raises `Rejected` when it is too large."""
        head = unique(self._headers(subject, type, id, cause, traceparent), ttl)
        if fence is not None:
            head.update(fence.headers())
        return Message(subject, self._encode(body), head)

    async def store_many(self, messages: Sequence[Message]) -> list[int | LlmosError]:
        """Publish many in their order, without waiting for one before the next; the sequence or the error of each.

        The promise for each is `emit`'s. One that had to be repeated is stored after those that follow it.
        """
        stored = await store_many(self._nc, messages, within=PERSIST_WITHIN_S, ensure=self._ensure)
        return [outcome.sequence if isinstance(outcome, Ack) else outcome for outcome in stored]

    async def store(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        """Publish bytes as they are (a dead letter's replay); the promise is `emit`'s if there is a `Nats-Msg-Id`."""
        return (await self._store(subject, data, headers)).sequence

    async def tell(
        self, subject: str, body: Any, *, type: str, id: str = "", cause: str = "", traceparent: str = ""
    ) -> None:
        """Publish without waiting for an ack: fast, and lost if the connection is."""
        with reaching(subject):
            await self._nc.publish(
                subject, self._encode(body), headers=self._headers(subject, type, id, cause, traceparent)
            )

    # --- inside ---

    async def _store(
        self, subject: str, data: bytes, headers: dict[str, str], *, within: float = PERSIST_WITHIN_S
    ) -> Ack:
        try:
            return await store(self._nc, subject, data, headers, within=within, ensure=self._ensure)
        except api.ApiError as error:
            raise refusal(subject, error) from error

    async def _store_one(self, message: Message) -> int:
        return (await self._store(*message)).sequence

    def _encode(self, body: Any) -> bytes:
        data = msgspec.json.encode(body)
        if len(data) > MAX_PAYLOAD:
            raise Rejected(
                f"a message of {len(data)} bytes is too large for the bus (limit {MAX_PAYLOAD})",
                remedy="Put the content into the artifact store and send its address.",
            )
        return data

    def _headers(self, subject: str, type: str, id: str, cause: str, parent: str) -> dict[str, str]:
        return Envelope(
            id=id or new_id(),
            source=f"llmos/{self._source}",
            type=type,
            subject=subject.rsplit(".", 1)[-1],
            time=rfc3339(self._clock.now()),
            cause=cause,
            traceparent=parent or traceparent(),
        ).to_headers()

    async def _ensure(self) -> None:
        async with self._ensuring:
            await api.ensure(self._nc)


def unique(headers: dict[str, str], ttl: float | None) -> dict[str, str]:
    """The headers with the id under which a stream stores the message once. `ttl` in seconds."""
    more = {"Nats-Msg-Id": headers["ce-id"]}
    if ttl is not None:
        more["Nats-TTL"] = f"{max(1, round(ttl))}s"
    return headers | more
