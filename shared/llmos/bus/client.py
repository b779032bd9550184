"""nats-py's client with its faults mended (each was seen on 2.16), and its errors turned into ours."""

import asyncio
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import nats.aio.client
import nats.errors
import structlog
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from llmos.errors import Busy, Rejected

LOOK_AGAIN_S = 0.02
MOST_NAMES = 1000
_log: Any = structlog.get_logger("llmos.bus")
_CHECK = "Check the connection to the bus."


class _OneLine(logging.Handler):
    """nats-py logs what it did not expect with a traceback, before the connection is taken up again."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        _log.warning(record.getMessage(), error=repr(error) if error else "")


logging.getLogger("nats").addHandler(_OneLine())


@contextmanager
def reaching(what: str) -> Iterator[None]:
    """Raise what nats-py raises as `Busy` (`Rejected` for what can never be sent): its classes stay inside the bus."""
    try:
        yield
    except (nats.errors.MaxPayloadError, nats.errors.BadSubjectError, nats.errors.BadHeaderError) as error:
        raise Rejected(f"{what} can't be sent: {error}") from error
    except nats.errors.NoRespondersError as error:
        raise Busy(f"nobody answers {what}", remedy="Check that the server runs with JetStream on.") from error
    except nats.errors.Error as error:
        raise Busy(f"{what} failed: {str(error) or type(error).__name__}", remedy=_CHECK) from error


_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_names: set[str] = set()  # that were found to be names of headers


def _is_name(text: str) -> bool:
    good = _NAME.fullmatch(text) is not None
    if good and len(_names) < MOST_NAMES:
        _names.add(text)
    return good


def _header_block(headers: dict[str, Any]) -> bytes:
    """The headers on the wire; nothing for what upstream has to mend or refuse."""
    lines = ["NATS/1.0"]
    for name, value in headers.items():
        if (name not in _names and not _is_name(name)) or "\n" in value or "\r" in value:
            return b""
        lines.append(f"{name}: {value}")
    return "\r\n".join((*lines, "", "")).encode()


class Client(nats.aio.client.Client):
    """One connection. Requests that were under way when it broke fail at once, so that they can be repeated."""

    fenced_in_turn = False  # the streams have replicas: messages with a condition are stored one after another

    async def stand(self, until: float) -> None:
        """Wait until the connection stands. Raises `Busy` at `until` (loop time), or when it was closed for good."""
        while not self.is_connected:  # nats-py has no event that is true exactly then
            if self.is_closed:
                raise Busy("the connection to the bus was closed")
            if asyncio.get_running_loop().time() > until:
                raise Busy("the bus is away", remedy=_CHECK)
            await asyncio.sleep(LOOK_AGAIN_S)

    async def close(self) -> None:
        """Disconnect for good; what could not be sent is dropped."""
        # Upstream writes what is buffered to the broken connection, and its error leaves the rest undone.
        if not self.is_connected:
            self._pending, self._pending_data_size = [], 0
        try:
            await super().close()
        except OSError:
            for subscription in self._subs.values():
                subscription._stop_processing()
            self._subs.clear()

    def drop_requests(self) -> None:
        """Fail every request that waits: the connection that would have brought its answer is gone."""
        for future in list(self._resp_map.values()):
            if not future.done():
                future.set_exception(nats.errors.ConnectionReconnectingError())

    async def drop(self, subscription: Subscription, within: float) -> None:
        """End a subscription after all that is under way was heard, or after `within` seconds."""
        try:
            async with asyncio.timeout(within):
                if self.is_connected:
                    await self._send_unsubscribe(subscription._id)
                    await self.flush()
                    await subscription._pending_queue.join()
        except (nats.errors.Error, TimeoutError):
            pass  # a lost connection: nothing more comes
        finally:
            subscription._closed = True
            subscription._stop_processing()
            self._remove_sub(subscription._id)

    async def _request_new_style(
        self, subject: str, payload: bytes, timeout: float = 1, headers: dict[str, Any] | None = None
    ) -> Msg:
        # Upstream waits by `wait_for`, which can swallow a cancellation, and leaks the future if it can't publish.
        if not self._resp_sub_prefix:
            await self._init_request_sub()
        assert self._resp_sub_prefix
        token = self._nuid.next().decode()
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._resp_map[token] = future
        try:
            await self.publish(subject, payload, reply=f"{self._resp_sub_prefix.decode()}{token}", headers=headers)
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise nats.errors.TimeoutError from None
        finally:
            self._resp_map.pop(token, None)

    async def request_many(
        self, messages: Sequence[tuple[str, bytes, dict[str, str]]], timeout: float
    ) -> list[Msg | nats.errors.Error]:
        """Send requests in one go and await the answers; an error in the place of an answer that did not come."""
        if not self._resp_sub_prefix:
            await self._init_request_sub()
        assert self._resp_sub_prefix
        prefix = self._resp_sub_prefix.decode()
        loop = asyncio.get_running_loop()
        waiting: dict[str, asyncio.Future[Msg]] = {}
        failed: dict[int, nats.errors.Error] = {}
        try:
            for at, (subject, payload, headers) in enumerate(messages):
                token = self._nuid.next().decode()
                waiting[token] = self._resp_map[token] = loop.create_future()
                try:
                    await self.publish(subject, payload, reply=prefix + token, headers=headers)
                except nats.errors.Error as error:
                    failed[at] = error
            under_way = [future for at, future in enumerate(waiting.values()) if at not in failed]
            if under_way:
                await asyncio.wait(under_way, timeout=timeout)
            return [failed.get(at) or _answer(future) for at, future in enumerate(waiting.values())]
        finally:
            for token in waiting:
                self._resp_map.pop(token, None)

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, Any] | None
    ) -> None:
        # Upstream matches and translates each name and value by itself: 8 us a message, most of what a publish costs.
        block = _header_block(headers) if headers and subject else b""
        if not block:
            await super()._send_publish(subject, reply, payload, payload_size, headers)
            return
        self.stats["out_msgs"] += 1
        self.stats["out_bytes"] += payload_size
        head = f"HPUB {subject} {reply} {len(block)} {len(block) + payload_size}\r\n"
        await self._send_command(b"".join((head.encode(), block, payload, b"\r\n")))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    @staticmethod
    def _parse_header_lines(raw: bytes) -> dict[str, str]:
        # Upstream looks at every character of every name: 6 us a message that is heard.
        headers = {}
        for line in raw.decode(errors="replace").split("\r\n"):
            name, colon, value = line.partition(":")
            if name in _names or (colon and _is_name(name)):
                headers[name] = value.strip()
            elif line:
                return nats.aio.client.Client._parse_header_lines(raw)
        return headers

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        # Upstream drops a cancellation that comes while it waits.
        task = asyncio.current_task()
        asked = task.cancelling() if task is not None else 0
        flushed = await super()._flush_pending(force_flush)
        if task is not None and task.cancelling() > asked:
            raise asyncio.CancelledError
        return flushed

    async def _process_pong(self) -> None:
        # Upstream hands every PONG to the oldest waiting flush; when that one was given up, it raises in the read loop.
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pongs_received += 1
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    async def _read_loop(self) -> None:
        # Upstream logs an unexpected error and stops reading: the connection would be deaf until the next pings fail.
        await super()._read_loop()
        if self.is_connected and self._reading_task is asyncio.current_task():
            await self._process_op_err(nats.errors.ProtocolError())

    def _build_message(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: dict[str, str] | None
    ) -> Msg:
        # Upstream decodes strictly: one message on a subject that is no UTF-8 ends the read loop of all who hear it.
        return self.msg_class(
            subject=subject.decode(errors="replace"),
            reply=reply.decode(errors="replace"),
            data=data,
            headers=headers,
            _client=self,
            _sid=sid,
        )


def _answer(future: "asyncio.Future[Msg]") -> Msg | nats.errors.Error:
    if not future.done():
        return nats.errors.TimeoutError()
    error = future.exception()
    if error is not None:
        return error if isinstance(error, nats.errors.Error) else nats.errors.Error(repr(error))
    msg = future.result()
    return nats.errors.NoRespondersError() if (msg.headers or {}).get("Status") == "503" else msg
