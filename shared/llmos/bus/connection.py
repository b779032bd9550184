"""`Bus`: one connection of one service, with its reply subject."""

import asyncio
import base64
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, TypeVar

import msgspec
import nats.errors
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from llmos.bus import api, work
from llmos.bus.api import StreamState
from llmos.bus.asking import REPLY_TO, Asking, Handler, Serving
from llmos.bus.bucket import WITHIN_S as BUCKET_WITHIN_S
from llmos.bus.bucket import Bucket
from llmos.bus.client import Client, reaching
from llmos.bus.delivery import Delivery
from llmos.bus.follow import Heard, follow
from llmos.bus.opening import open_connection
from llmos.bus.pull import Pull
from llmos.bus.saying import Saying, unique
from llmos.bus.store import store
from llmos.clock import Clock, SystemClock
from llmos.contracts import subjects
from llmos.contracts.envelope import Envelope
from llmos.errors import Busy, LlmosError, Rejected
from llmos.ids import new_id
from llmos.telemetry import Telemetry

T = TypeVar("T")
CONNECT_WITHIN_S = 20.0
_log: Any = structlog.get_logger("llmos.bus")


class Bus(Saying):
    """A connection to the bus. Make it with `connect`; every method may be used from many tasks at once.

    What fails raises an `LlmosError`: `Busy` when the bus is away or does not answer in time, or the connection was
    closed; `Rejected` when it refuses. A connection that is lost is taken up again for ever.
    """

    def __init__(self, nc: Client, source: str, telemetry: Telemetry | None, clock: Clock) -> None:
        super().__init__(nc, source, clock)
        self._telemetry = telemetry
        self._pulls: set[Pull] = set()
        self._buckets: dict[str, Bucket] = {}
        self._lost_at: float | None = None
        self._last_error = ""
        self.client = new_id("c")
        self._asking = Asking(nc, self.client)

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        source: str,
        telemetry: Telemetry | None = None,
        clock: Clock | None = None,
        credentials: str = "",
        within: float = CONNECT_WITHIN_S,
    ) -> "Bus":
        """Connect, check the server, and make the streams and buckets that are missing.

        `source` is `<service>/<node>`. Raises `Fatal` for a server that is too old or refuses the credentials, `Busy`
        when none answers within `within` seconds; then nothing is left open.
        """
        nc = Client()
        bus = cls(nc, source, telemetry, clock or SystemClock())
        try:
            await open_connection(
                nc,
                url,
                source=source,
                credentials=credentials,
                within=within,
                on_error=bus._on_error,
                on_lost=bus._on_disconnected,
                on_back=bus._on_reconnected,
            )
            await nc.subscribe(f"llmos.reply.{bus.client}.*", cb=bus._asking.on_reply)
        except BaseException:
            with suppress(nats.errors.Error, OSError, AssertionError):  # nats-py asserts that it ever connected
                await nc.close()
            raise
        return bus

    @property
    def connected(self) -> bool:
        """Whether the connection stands at this moment."""
        return self._nc.is_connected

    async def close(self) -> None:
        """Send what is buffered and disconnect. What waits for a message or an answer raises `Busy`."""
        if not self._nc.is_closed:
            with suppress(nats.errors.Error, TimeoutError):
                if self._nc.is_connected:
                    await self._nc.flush(timeout=2)
            await self._nc.close()
        self._asking.close()
        for pull in tuple(self._pulls):
            pull.wake()

    # --- hearing ---

    def work(
        self,
        stream: str,
        consumer: str,
        filter: str,
        kind: type[T],
        *,
        slots: Callable[[], int],
        max_deliver: int = 5,
        ack_wait: float = 12.0,
    ) -> AsyncGenerator[Delivery[T], None]:
        """Take messages of a work queue as there is room: `slots()` says how many more may come now.

        Nothing is delivered while `slots()` is 0. What was pulled ahead is kept ours until it is taken, and given back
        when the iteration ends. A message that can't be decoded as `kind` (`bytes` takes any), or comes for more than
        the `max_deliver`th time, is copied to DEAD. Raises `Busy` when the connection was closed.
        """
        queue = work.Queue(stream, consumer, filter, max_deliver, ack_wait)
        return work.work(self._nc, self._pulls, queue, kind, slots=slots, ensure=self._ensure, bury=self._bury)

    def follow(
        self, stream: str, filters: Sequence[str] = (), *, start: int = 1, last_per_subject: bool = False
    ) -> AsyncGenerator[Heard, None]:
        """Every stored message from sequence `start` (0: only new ones), in order and each once, then what comes.

        A stream that was made anew meanwhile is followed from its beginning. Raises `Busy` when the connection was
        closed.
        """
        return follow(
            self._nc,
            self._pulls,
            stream,
            filters,
            start=start,
            last_per_subject=last_per_subject,
            ensure=self._ensure,
        )

    async def last_sequence(self, stream: str, subject: str = "") -> int:
        """The sequence of the newest message, of those that `subject` selects if it is given; 0 when there is none."""
        if not subject:
            return int((await api.request(self._nc, f"STREAM.INFO.{stream}"))["state"]["last_seq"])
        found = await api.last_message(self._nc, stream, subject)
        return int(found["seq"]) if found else 0

    async def stream_state(self, stream: str) -> StreamState:
        """Which stream this is and how far it goes. Raises `LlmosError` when there is none or the bus is away."""
        info = await api.request(self._nc, f"STREAM.INFO.{stream}")
        return StreamState(str(info["created"]), int(info["state"]["first_seq"]), int(info["state"]["last_seq"]))

    async def last_of(self, stream: str, subject: str, kind: type[T]) -> T | None:
        """The newest message of one subject, or `None`; also for one that is no `kind`."""
        found = await api.last_message(self._nc, stream, subject)
        if found is None:
            return None
        try:
            return msgspec.json.decode(base64.b64decode(found.get("data", "")), type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _log.warning("a message can't be read", subject=subject, error=str(error))
            return None

    async def purge(self, stream: str, subject: str) -> int:
        """Remove every message of a subject; how many there were."""
        return int((await api.request(self._nc, f"STREAM.PURGE.{stream}", {"filter": subject})).get("purged", 0))

    # --- asking ---

    async def call(self, service: str, verb: str, request: Struct, *, timeout: float = 5.0) -> Any:
        """Ask a service; its typed answer. Raises what the service raised, or `Busy` when it does not answer in time
        (it may do what was asked all the same)."""
        row = subjects.find_call(service, verb)
        id = new_id("q")
        subject = subjects.call(service, verb, id)
        try:
            return await self.ask(subject, request, type=row.ce_type, id=id, answer=row.answer, timeout=timeout)
        except TimeoutError:
            raise Busy(
                f"{service} did not answer {verb} within {timeout:g} s",
                remedy=f"Check that {service} runs (`llmos status`).",
            ) from None

    async def ask(
        self,
        subject: str,
        body: Struct,
        *,
        type: str,
        id: str,
        answer: type[T],
        timeout: float,
        ttl: float | None = None,
    ) -> T:
        """Publish a question (stored once per `id`) and await one answer on `llmos.reply.<client>.<id>`.

        After a reconnect the answer is looked for, and the question asked again if need be. Raises `TimeoutError` when
        no answer came in time, `Busy` when the queue is full or the connection was closed, and the error that the
        answer carries.
        """
        data = self._encode(body)
        head = self._headers(subject, type, id, "", "") | {REPLY_TO: self.client}
        publish = partial(self._store, subject, data, unique(head, ttl))
        return await self._asking.ask(id, publish, answer, timeout)

    async def ask_stream(
        self, subject: str, body: Struct, *, type: str, id: str, timeout: float, ttl: float | None = None
    ) -> AsyncGenerator[tuple[str, bytes], None]:
        """Publish a question (stored once per `id`) and yield all that is said on `llmos.reply.<client>.<id>`: each
        message's `ce-type` and body, until the iteration is left.

        After a reconnect the question is asked again if need be, and of what was said meanwhile the newest comes.
        Raises `TimeoutError` after `timeout` seconds, `Busy` when the queue is full or the connection was closed.
        """
        data = self._encode(body)
        head = self._headers(subject, type, id, "", "") | {REPLY_TO: self.client}
        publish = partial(self._store, subject, data, unique(head, ttl))
        async with aclosing(self._asking.stream(id, publish, timeout)) as replies:
            async for msg in replies:
                yield (msg.headers or {}).get("ce-type", ""), msg.data

    async def serve(
        self, service: str, handlers: Mapping[str, Handler], *, at_once: int = 32, ack_wait: float = 12.0
    ) -> None:
        """Answer the calls of a service until cancelled. An error becomes a `Problem`; an unexpected one is logged.

        A question is kept ours while its handler runs, and given back when it is cancelled: handlers are idempotent.
        """
        serving = Serving(service, handlers, self._reply, ack_wait)
        filter = f"llmos.call.{service}.*.*"
        await serving.run(
            self.work("CALL", service, filter, msgspec.Raw, slots=lambda: at_once - len(serving), ack_wait=ack_wait)
        )

    # --- keeping ---

    def bucket(self, name: str) -> Bucket:
        """A key-value bucket of the table."""
        if name not in self._buckets:
            self._buckets[name] = Bucket(name, self._nc, self._store_entry, self._follow_bucket)
        return self._buckets[name]

    # --- inside ---

    async def _store_entry(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        ack = await store(self._nc, subject, data, headers, within=BUCKET_WITHIN_S, ensure=self._ensure)
        return ack.sequence

    def _follow_bucket(self, name: str) -> AsyncGenerator[Heard, None]:
        return self.follow(f"KV_{name}", [f"$KV.{name}.>"], last_per_subject=True)

    async def _reply(self, subject: str, answer: Struct, kind: str, question: Envelope) -> None:
        await self.tell(subject, answer, type=kind, cause=question.id, traceparent=question.traceparent)

    async def _bury(self, stream: str, consumer: str, msg: Msg, reason: str) -> None:
        subject = subjects.dead_letter(stream, consumer)
        id, letter = work.dead_letter(stream, consumer, msg, reason)
        head = unique(self._headers(msg.subject, "llmos.dead.letter.v1", id, "", ""), None)
        try:
            await self.store(subject, letter, head)
        except Rejected:  # larger than the bus takes: know of it at least
            await self.store(subject, work.dead_letter(stream, consumer, msg, reason, whole=False)[1], head)
        with reaching("the end of a message"):
            await msg.term()
        _log.warning("a message died", stream=stream, sequence=msg.metadata.sequence.stream, reason=reason)
        if self._telemetry is not None:
            self._telemetry.count("llmos.bus.dead", stream=stream)

    async def _on_disconnected(self) -> None:
        self._nc.drop_requests()
        if not self._nc.is_closed and self._lost_at is None:
            self._lost_at = asyncio.get_running_loop().time()
            _log.warning("the connection to the bus is lost", error=self._last_error or "it ended")

    async def _on_reconnected(self) -> None:
        if self._lost_at is not None:
            away = asyncio.get_running_loop().time() - self._lost_at
            self._lost_at, self._last_error = None, ""
            _log.info("the bus is back", after_s=round(away, 1))
        # Memory streams vanish with the server: make them again before anybody uses them, then post the pulls anew.
        with suppress(LlmosError):
            await self._ensure()
        for pull in tuple(self._pulls):
            pull.reset()
        self._asking.again()

    async def _on_error(self, error: Exception) -> None:
        self._last_error = str(error) or type(error).__name__
        if not self._nc.is_connected or isinstance(error, OSError | nats.errors.StaleConnectionError):
            return  # said once when the connection is lost, and again when it is back
        expected = isinstance(error, nats.errors.Error)
        _log.warning("the bus reports an error", error=self._last_error, exc_info=None if expected else error)
