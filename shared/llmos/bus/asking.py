"""Questions and answers: a question is stored until somebody answers it, and asked again when it may be lost."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any, Protocol, TypeVar

import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from llmos.bus.client import Client, reaching
from llmos.bus.delivery import Delivery
from llmos.bus.store import Ack
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.envelope import Envelope
from llmos.errors import Busy, LlmosError, Problem, Rejected, from_problem

T = TypeVar("T")
Handler = Callable[[Any, Envelope], Awaitable[Struct]]
REPLY_TO = "ce-replyto"
LOOK_WITHIN_S = 2.0
_log: Any = structlog.get_logger("llmos.bus")


class Publish(Protocol):
    """Publish a question; where it is stored."""

    async def __call__(self, *, within: float) -> Ack: ...


class Reply(Protocol):
    """Say an answer."""

    async def __call__(self, subject: str, answer: Struct, kind: str, question: Envelope) -> None: ...


class Asking:
    """The questions of one connection. Its answers come to `llmos.reply.<client>.<id>`."""

    def __init__(self, nc: Client, client: str) -> None:
        self._nc = nc
        self._client = client
        self._waiting: dict[str, set[asyncio.Future[Msg | None]]] = {}
        self._streams: dict[str, asyncio.Queue[Msg | LlmosError | None]] = {}

    async def ask(self, id: str, publish: Publish, answer: type[T], timeout: float) -> T:
        """Publish a question and await its answer. Raises `TimeoutError`, or the error that the answer carries."""
        async with asyncio.timeout(timeout):
            msg: Msg | None = None
            while msg is None:  # asked again under the same id after each reconnect: the question may be lost
                msg = await self._ask_once(id, publish, timeout)
        try:
            if (msg.headers or {}).get("ce-type") == subjects.PROBLEM_TYPE:
                raise from_problem(msgspec.json.decode(msg.data, type=Problem))
            return msgspec.json.decode(msg.data, type=answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise LlmosError(f"the answer to {id} can't be read: {error}", code="unreadable") from error

    async def _ask_once(self, id: str, publish: Publish, timeout: float) -> Msg | None:
        future: asyncio.Future[Msg | None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(id, set())
        waiting.add(future)
        try:
            asked = await publish(within=timeout + 1.0)  # the caller's timeout ends it first
            kept = await self._kept(id) if asked.duplicate else None  # asked before, perhaps answered before
            return kept or await future
        finally:
            waiting.discard(future)
            if not waiting:
                self._waiting.pop(id, None)

    async def stream(self, id: str, publish: Publish, timeout: float) -> AsyncGenerator[Msg, None]:
        """Publish a question and yield everything that is said to it, until the iteration is left.

        What was said while the connection was away is missing; the newest of it comes. Raises `TimeoutError` after
        `timeout` seconds, `Busy` when the connection was closed.
        """
        replies = self._streams[id] = asyncio.Queue()
        until = asyncio.get_running_loop().time() + timeout
        replies.put_nowait(None)
        try:
            while True:
                async with asyncio.timeout_at(until):
                    msg = await replies.get()
                    if msg is None:  # to be asked: at first, and after each reconnect
                        asked = await publish(within=timeout + 1.0)
                        msg = await self._kept(id) if asked.duplicate else None
                if isinstance(msg, LlmosError):
                    raise msg
                if msg is not None:
                    yield msg
        finally:
            self._streams.pop(id, None)

    async def on_reply(self, msg: Msg) -> None:
        """Hand an answer to all who wait for it."""
        id = msg.subject.rsplit(".", 1)[-1]
        stream = self._streams.get(id)
        if stream is not None:
            stream.put_nowait(msg)
        self._settle(self._waiting.get(id, set()), msg)

    def again(self) -> None:
        """Have every open question asked again."""
        for waiting in list(self._waiting.values()):
            self._settle(waiting, None)
        for stream in self._streams.values():
            stream.put_nowait(None)

    def close(self) -> None:
        """Fail every open question."""
        for stream in self._streams.values():
            stream.put_nowait(Busy("the connection to the bus was closed"))
        for waiting in list(self._waiting.values()):
            for future in waiting:
                if not future.done():
                    future.set_exception(Busy("the connection to the bus was closed"))

    def _settle(self, waiting: set[asyncio.Future[Msg | None]], result: Msg | None) -> None:
        for future in waiting:
            if not future.done():
                future.set_result(result)

    async def _kept(self, id: str) -> Msg | None:
        subject = subjects.reply(self._client, id)
        with suppress(Busy), reaching("the stream REPLY"):
            msg = await self._nc.request(f"$JS.API.DIRECT.GET.REPLY.{subject}", timeout=LOOK_WITHIN_S)
            return None if "Status" in (msg.headers or {}) else msg
        return None


class Serving:
    """One service's answering: a task for each question at hand."""

    def __init__(self, service: str, handlers: Mapping[str, Handler], reply: Reply, ack_wait: float) -> None:
        self._service = service
        self._handlers = handlers
        self._reply = reply
        self._ack_wait = ack_wait
        self._running: dict[asyncio.Task[None], Delivery[msgspec.Raw]] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def run(self, questions: AsyncGenerator[Delivery[msgspec.Raw], None]) -> None:
        """Answer until cancelled; what is not answered then is given back for another to answer."""
        keeper = asyncio.create_task(self._keep())
        try:
            async with aclosing(questions):
                async for delivery in questions:
                    task = asyncio.create_task(self._answer(delivery))
                    self._running[task] = delivery
                    task.add_done_callback(self._running.pop)
        finally:
            await cancel(keeper, *self._running)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(self._ack_wait / 3)
            for delivery in list(self._running.values()):
                with suppress(Busy):
                    await delivery.in_progress()

    async def _answer(self, delivery: Delivery[msgspec.Raw]) -> None:
        try:
            answer, kind = await self._handle(delivery)
            await self._send(delivery, answer, kind)
            await delivery.ack()
        except asyncio.CancelledError:
            with suppress(Busy):
                await delivery.nak()
            raise
        except LlmosError as error:
            _log.warning("an answer was not sent", service=self._service, error=str(error))

    async def _handle(self, delivery: Delivery[msgspec.Raw]) -> tuple[Struct, str]:
        verb = delivery.subject.split(".")[3]
        try:
            row, handler = subjects.find_call(self._service, verb), self._handlers[verb]
        except KeyError:
            return Problem("not_found", f"{self._service} does not know {verb!r}"), subjects.PROBLEM_TYPE
        try:
            request = msgspec.json.decode(delivery.data, type=row.request)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            return Problem("rejected", f"the request is not valid: {error}"), subjects.PROBLEM_TYPE
        try:
            return await handler(request, delivery.envelope), f"llmos.reply.{self._service}.{verb}.v1"
        except LlmosError as error:
            return error.problem, subjects.PROBLEM_TYPE
        except Exception as error:  # noqa: BLE001  # the asker hears of it, and one bad question stops no service
            _log.exception("a call failed", service=self._service, verb=verb)
            return Problem("error", f"{self._service}.{verb} failed: {error}"), subjects.PROBLEM_TYPE

    async def _send(self, delivery: Delivery[msgspec.Raw], answer: Struct, kind: str) -> None:
        client, request = delivery.headers.get(REPLY_TO, ""), delivery.subject.split(".")[4]
        try:
            subject = subjects.reply(client, request)
        except Rejected:
            return  # nobody can be answered
        try:
            await self._reply(subject, answer, kind, delivery.envelope)
        except Rejected as error:  # too large for one message
            await self._reply(subject, error.problem, subjects.PROBLEM_TYPE, delivery.envelope)
