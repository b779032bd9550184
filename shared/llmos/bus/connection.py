"""`Bus`: one connection of one service, with its reply subject."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar, cast

import msgspec
import nats
import nats.errors
import nats.js.errors
import structlog
from msgspec import Struct
from nats.aio.msg import Msg
from nats.js.kv import KeyValue

from llmos.bus import api
from llmos.bus.bucket import Bucket
from llmos.bus.client import Client
from llmos.bus.delivery import Delivery
from llmos.bus.follow import Heard, follow
from llmos.bus.pull import Pull
from llmos.clock import Clock, SystemClock, rfc3339
from llmos.contracts import subjects
from llmos.contracts.dead import DeadLetter
from llmos.contracts.envelope import Envelope
from llmos.errors import Busy, Fatal, LlmosError, Problem, Rejected, from_problem
from llmos.ids import new_id
from llmos.telemetry import Telemetry, traceparent

T = TypeVar("T")
Handler = Callable[[Any, Envelope], Awaitable[Struct]]


class StreamState(Struct, frozen=True):
    """A stream: when it was made (RFC 3339; another time is another stream), its oldest and its newest sequence."""

    created: str
    first: int
    last: int


MAX_PAYLOAD = 512 * 1024
PUBLISH_TIMEOUT_S = 2.0
PERSIST_WITHIN_S = 30.0
CONNECT_WITHIN_S = 20.0
REPLY_TO = "ce-replyto"
_LOST = (
    nats.errors.TimeoutError,
    nats.errors.NoRespondersError,
    nats.errors.ConnectionClosedError,
    nats.errors.ConnectionReconnectingError,
    nats.errors.OutboundBufferLimitError,
    nats.js.errors.NoStreamResponseError,
    nats.js.errors.ServiceUnavailableError,
)
_log: Any = structlog.get_logger("llmos.bus")


class Bus:
    """A connection to the bus. Make it with `connect`; every method may be used from many tasks at once."""

    def __init__(self, nc: Client, source: str, telemetry: Telemetry | None, clock: Clock) -> None:
        self._nc = nc
        self._js = nc.jetstream()
        self._source = source
        self._telemetry = telemetry
        self._clock = clock
        self._pulls: set[Pull] = set()
        self._waiting: dict[str, asyncio.Future[Msg]] = {}
        self._buckets: dict[str, Bucket] = {}
        self._ensuring = asyncio.Lock()
        self.client = new_id("c")

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
        when none answers within `within` seconds. A connection that is lost later is taken up again for ever.
        """
        nc = Client()
        bus = cls(nc, source, telemetry, clock or SystemClock())
        options: dict[str, Any] = {"user_credentials": credentials} if credentials else {}
        refused: list[str] = []

        async def on_error(error: Exception) -> None:
            refused.append(str(error))
            _log.warning("the bus reports an error", error=str(error) or type(error).__name__)

        try:
            await asyncio.wait_for(
                nc.connect(
                    servers=url.split(","),
                    name=source,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=0.2,  # type: ignore[arg-type]  # seconds; nats-py only sleeps on it
                    connect_timeout=2,
                    ping_interval=10,
                    error_cb=on_error,
                    reconnected_cb=bus._on_reconnected,
                    skip_subject_validation=True,
                    **options,
                ),
                within,
            )
            await api.check_level(nc)
            await api.ensure(nc)
            await nc.subscribe(f"llmos.reply.{bus.client}.*", cb=bus._on_reply)
        except (TimeoutError, OSError, nats.errors.Error, nats.errors.NoServersError) as error:
            with suppress(nats.errors.Error):
                await nc.close()
            why = refused[-1] if refused else str(error) or "no answer"
            if "uthorization" in why or "permissions" in why.lower():
                raise Fatal(f"the bus at {url} refused {source}: {why}", remedy="Check the credentials.") from error
            raise Busy(
                f"can't reach the bus at {url}: {why}",
                remedy="Start the stack with `llmos up`, or set LLMOS_NATS_URL to a nats-server with JetStream.",
            ) from error
        return bus

    @property
    def connected(self) -> bool:
        """Whether the connection stands at this moment."""
        return self._nc.is_connected

    async def close(self) -> None:
        """Send what is buffered and disconnect."""
        if self._nc.is_closed:
            return
        with suppress(nats.errors.Error, TimeoutError):
            await self._nc.flush(timeout=2)
        await self._nc.close()

    # --- saying ---

    async def emit(self, event: Struct, *, id: str = "", cause: str = "", traceparent: str = "") -> int:
        """Publish a fact to the history; its sequence in EVENTS. Stored once per `id` when it returns.

        Retried under one id while the bus is away. Raises `Busy` after 30 s: the fact may or may not be stored.
        """
        row = subjects.event_row(event)
        return await self.publish(
            subjects.event_subject(event), event, type=row.ce_type, id=id, cause=cause, traceparent=traceparent
        )

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
        """Publish to a stream; the message's sequence there. The promise is `emit`'s. `ttl` in seconds, at least 1."""
        data = self._encode(body)
        head = self._headers(subject, type, id, cause, traceparent) | dict(headers or {})
        head["Nats-Msg-Id"] = head["ce-id"]
        if ttl is not None:
            head["Nats-TTL"] = f"{max(1, round(ttl))}s"
        return await self.store(subject, data, head)

    async def store(self, subject: str, data: bytes, headers: dict[str, str]) -> int:
        """Publish bytes as they are (a dead letter's replay); the promise is `emit`'s if there is a `Nats-Msg-Id`."""
        deadline = self._clock.monotonic() + PERSIST_WITHIN_S
        while True:
            try:
                ack = await self._js.publish(subject, data, timeout=PUBLISH_TIMEOUT_S, headers=headers)
                return int(ack.seq)
            except nats.js.errors.APIError as error:
                if error.err_code in (10076, 10077, 10166):  # the stream is full
                    raise Busy(f"{subject} is full: {error.description}", remedy="Retry later.") from error
                if error.code != 503:
                    raise Rejected(f"the bus refused {subject}: {error.description}") from error
                lost: Exception = error
            except _LOST as error:
                lost = error
            if self._nc.is_closed or self._clock.monotonic() > deadline:
                raise Busy(
                    f"the bus did not confirm {subject}: {lost or type(lost).__name__}", remedy="Retry."
                ) from lost
            await asyncio.sleep(0.2)
            if isinstance(lost, nats.js.errors.NoStreamResponseError | nats.errors.NoRespondersError):
                with suppress(LlmosError):
                    await self._ensure()

    async def tell(
        self, subject: str, body: Any, *, type: str, id: str = "", cause: str = "", traceparent: str = ""
    ) -> None:
        """Publish without waiting for an ack: fast, and lost if the connection is."""
        await self._nc.publish(
            subject, self._encode(body), headers=self._headers(subject, type, id, cause, traceparent)
        )

    # --- hearing ---

    async def work(
        self,
        stream: str,
        consumer: str,
        filter: str,
        kind: type[T],
        *,
        slots: Callable[[], int],
        max_deliver: int = 5,
        ack_wait: float = 12.0,
    ) -> AsyncIterator[Delivery[T]]:
        """Take messages of a work queue as there is room: `slots()` says how many more may come now.

        A message that can't be decoded as `kind` (`bytes` takes any), or comes for more than the `max_deliver`th time,
        is copied to DEAD.
        """

        async def prepare() -> str:
            await self._ensure()
            config = {
                "durable_name": consumer,
                "name": consumer,
                "filter_subject": filter,
                "ack_policy": "explicit",
                "ack_wait": int(ack_wait * 1e9),
                "max_deliver": -1,
                "max_ack_pending": 10_000,
                "max_waiting": 4096,
                "deliver_policy": "all",
                "replay_policy": "instant",
            }
            await api.request(
                self._nc, f"CONSUMER.CREATE.{stream}.{consumer}.{filter}", {"stream_name": stream, "config": config}
            )
            return consumer

        decode = bytes if kind is bytes else msgspec.json.Decoder(kind).decode
        pull = Pull(self._nc, stream, prepare)
        self._pulls.add(pull)
        try:
            while not self._nc.is_closed:
                msg = await pull.take(slots(), timeout=1.0)
                if msg is None:
                    continue
                if msg.metadata.num_delivered > max_deliver:
                    await self._bury(stream, consumer, msg, f"delivered {max_deliver} times and never finished")
                    continue
                try:
                    body = cast(T, decode(msg.data))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    await self._bury(stream, consumer, msg, f"not a {getattr(kind, '__name__', kind)}: {error}")
                    continue
                yield Delivery(
                    msg,
                    body,
                    ack_wait=ack_wait,
                    done=pull.wake,
                    bury=lambda m, why: self._bury(stream, consumer, m, why),
                )
            raise Busy("the connection to the bus was closed")
        finally:
            self._pulls.discard(pull)
            for msg in await pull.leave():  # others need not wait until its ack wait is over
                with suppress(nats.errors.Error):
                    await msg.nak()

    def follow(
        self, stream: str, filters: Sequence[str] = (), *, start: int = 1, last_per_subject: bool = False
    ) -> AsyncIterator[Heard]:
        """Every stored message from sequence `start` (0: only new ones), in order and each once, then what comes."""
        return follow(self._nc, self._pulls, stream, filters, start, last_per_subject)

    async def last_sequence(self, stream: str, subject: str = "") -> int:
        """The sequence of the newest message, of those that `subject` selects if it is given; 0 when there is none."""
        if not subject:
            return int((await api.request(self._nc, f"STREAM.INFO.{stream}"))["state"]["last_seq"])
        try:
            found = await api.request(self._nc, f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        except api.ApiError as error:
            if error.err_code == 10037:
                return 0
            raise
        return int(found["message"]["seq"])

    async def stream_state(self, stream: str) -> StreamState:
        """Which stream this is and how far it goes. Raises `LlmosError` when there is none or the bus is away."""
        info = await api.request(self._nc, f"STREAM.INFO.{stream}")
        return StreamState(str(info["created"]), int(info["state"]["first_seq"]), int(info["state"]["last_seq"]))

    async def last_of(self, stream: str, subject: str, kind: type[T]) -> T | None:
        """The newest message of one subject, or `None`."""
        try:
            found = await api.request(self._nc, f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        except api.ApiError as error:
            if error.err_code == 10037:
                return None
            raise
        return msgspec.json.decode(base64.b64decode(found["message"].get("data", "")), type=kind)

    async def purge(self, stream: str, subject: str) -> int:
        """Remove every message of a subject; how many there were."""
        return int((await api.request(self._nc, f"STREAM.PURGE.{stream}", {"filter": subject})).get("purged", 0))

    # --- asking ---

    async def call(self, service: str, verb: str, request: Struct, *, timeout: float = 5.0) -> Any:
        """Ask a service; its typed answer. Raises what the service raised, or `Busy` when it does not answer."""
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
        """Publish a question (stored) and await one answer on `llmos.reply.<client>.<id>`.

        Raises `TimeoutError`, or the error that the answer carries.
        """
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[id] = future
        try:
            async with asyncio.timeout(timeout):
                await self.publish(subject, body, type=type, id=id, ttl=ttl, headers={REPLY_TO: self.client})
                msg = await future
        finally:
            self._waiting.pop(id, None)
        if (msg.headers or {}).get("ce-type") == subjects.PROBLEM_TYPE:
            raise from_problem(msgspec.json.decode(msg.data, type=Problem))
        return msgspec.json.decode(msg.data, type=answer)

    async def serve(self, service: str, handlers: Mapping[str, Handler], *, at_once: int = 32) -> None:
        """Answer the calls of a service until cancelled. An error becomes a `Problem`; an unexpected one is logged."""
        running: set[asyncio.Task[None]] = set()
        filter = f"llmos.call.{service}.*.*"
        try:
            async for delivery in self.work("CALL", service, filter, msgspec.Raw, slots=lambda: at_once - len(running)):
                task = asyncio.create_task(self._answer(service, handlers, delivery))
                running.add(task)
                task.add_done_callback(running.discard)
        finally:
            for task in running:
                task.cancel()

    async def _answer(self, service: str, handlers: Mapping[str, Handler], delivery: Delivery[msgspec.Raw]) -> None:
        verb = delivery.subject.split(".")[3]
        envelope = delivery.envelope
        try:
            row = subjects.find_call(service, verb)
            answer: Struct = await handlers[verb](msgspec.json.decode(delivery.data, type=row.request), envelope)
            kind = f"llmos.reply.{service}.{verb}.v1"
        except KeyError:
            answer, kind = Problem("not_found", f"{service} does not know {verb!r}"), subjects.PROBLEM_TYPE
        except msgspec.DecodeError as error:
            answer, kind = Problem("rejected", f"the request is not valid: {error}"), subjects.PROBLEM_TYPE
        except LlmosError as error:
            answer, kind = error.problem, subjects.PROBLEM_TYPE
        except Exception as error:  # noqa: BLE001  # the asker hears of it, and one bad question stops no service
            _log.exception("a call failed", service=service, verb=verb)
            answer, kind = Problem("error", f"{service}.{verb} failed: {error}"), subjects.PROBLEM_TYPE
        client = delivery.headers.get(REPLY_TO, "")
        request = delivery.subject.split(".")[4]
        if client:
            await self.tell(
                subjects.reply(client, request), answer, type=kind, cause=envelope.id, traceparent=envelope.traceparent
            )
        await delivery.ack()

    # --- keeping ---

    def bucket(self, name: str) -> Bucket:
        """A key-value bucket of the table."""
        if name not in self._buckets:
            self._buckets[name] = Bucket(name, self._open_bucket, self._follow_bucket)
        return self._buckets[name]

    async def _open_bucket(self, name: str) -> KeyValue:
        return await self._js.key_value(name)

    def _follow_bucket(self, name: str) -> AsyncIterator[Heard]:
        return self.follow(f"KV_{name}", [f"$KV.{name}.>"], last_per_subject=True)

    # --- inside ---

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

    async def _bury(self, stream: str, consumer: str, msg: Msg, reason: str) -> None:
        meta = msg.metadata
        letter = DeadLetter(
            stream=stream,
            consumer=consumer,
            subject=msg.subject,
            sequence=meta.sequence.stream,
            deliveries=meta.num_delivered,
            reason=reason,
            headers=dict(msg.headers or {}),
            data=base64.b64encode(msg.data).decode(),
        )
        id = f"dead.{stream}.{meta.sequence.stream}.{int(meta.timestamp.timestamp() * 1000)}"
        head = self._headers(msg.subject, "llmos.dead.letter.v1", id, "", "") | {"Nats-Msg-Id": id}
        await self.store(subjects.dead_letter(stream, consumer), msgspec.json.encode(letter), head)
        await msg.term()
        _log.warning("a message died", stream=stream, sequence=meta.sequence.stream, reason=reason)
        if self._telemetry is not None:
            self._telemetry.count("llmos.bus.dead", stream=stream)

    async def _ensure(self) -> None:
        async with self._ensuring:
            await api.ensure(self._nc)

    async def _on_reconnected(self) -> None:
        # Memory streams vanish with the server: make them again before anybody uses them, then post the pulls anew.
        with suppress(LlmosError, nats.errors.Error):
            await self._ensure()
        for pull in tuple(self._pulls):
            pull.reset()

    async def _on_reply(self, msg: Msg) -> None:
        future = self._waiting.get(msg.subject.rsplit(".", 1)[-1])
        if future is not None and not future.done():
            future.set_result(msg)
