"""Key-value buckets with typed values: small state that is written with compare-and-set."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, Generic, TypeVar

import msgspec
import structlog
from msgspec import Struct
from nats.aio.msg import Msg

from llmos.bus.api import WRONG_LAST, ApiError
from llmos.bus.client import Client, reaching
from llmos.bus.follow import Heard
from llmos.bus.store import Conflict
from llmos.errors import Busy, LlmosError, Rejected
from llmos.ids import new_id

T = TypeVar("T")
WITHIN_S = 5.0
_BAD_VALUE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_KEY = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-/_=.")
_log: Any = structlog.get_logger("llmos.bus")


class Entry(Struct, Generic[T], frozen=True):
    """A value and the revision to name when replacing it."""

    key: str
    value: T
    revision: int


Store = Callable[[str, bytes, dict[str, str]], Awaitable[int]]
Follow = Callable[[str], AsyncGenerator[Heard, None]]


class Bucket:
    """One bucket. Values are JSON; keys are subject tokens joined by dots.

    Every method raises `Busy` when the bus did not answer within 5 s; what was to be written may then be written or
    not. A write whose confirmation was lost is repeated before that, and counts once.
    """

    def __init__(self, name: str, nc: Client, store: Store, follow: Follow) -> None:
        self.name = name
        self._nc = nc
        self._store = store
        self._follow = follow

    async def get(self, key: str, kind: type[T]) -> Entry[T] | None:
        """The newest value of a key, or `None`. Raises `LlmosError` for a value that is no `kind`."""
        msg = await self._read(key)
        if msg is None or _is_gone(msg.headers or {}, msg.data):
            return None
        try:
            value = msgspec.json.decode(msg.data, type=kind)
        except _BAD_VALUE as error:
            raise LlmosError(f"{self.name}/{key} can't be read: {error}", code="unreadable") from error
        return Entry(key, value, _revision(msg))

    async def put(self, key: str, value: Any) -> int:
        """Write without comparing; persisted when it returns. The new revision."""
        return await self._write(key, msgspec.json.encode(value))

    async def create(self, key: str, value: Any) -> int:
        """Write a key that does not exist. Raises `Conflict` if it does."""
        data = msgspec.json.encode(value)
        try:
            return await self._write(key, data, expect=0)
        except Conflict:
            there = await self._read(key)
            if there is None or not _is_gone(there.headers or {}, there.data):
                raise Conflict(f"{self.name}/{key} exists already") from None
            return await self._write(key, data, expect=_revision(there))  # the mark of a deleted key

    async def update(self, key: str, value: Any, revision: int) -> int:
        """Replace the value that has `revision`. Raises `Conflict` if it is no longer the newest."""
        return await self._write(key, msgspec.json.encode(value), expect=revision)

    async def delete(self, key: str, revision: int | None = None) -> None:
        """Remove a key, if there is one. Raises `Conflict` if `revision` is given and not the newest."""
        await self._write(key, b"", expect=revision, headers={"KV-Operation": "DEL"})

    async def keys(self, prefix: str = "") -> list[str]:
        """The keys that start with `prefix`, sorted."""
        found: list[str] = []
        try:
            async with asyncio.timeout(WITHIN_S):
                newest = await self._newest()
                if newest:
                    async with aclosing(self._follow(self.name)) as entries:
                        async for heard in entries:
                            if not _is_gone(heard.headers, heard.data):
                                found.append(heard.subject.split(".", 2)[2])
                            if heard.pending == 0 or heard.sequence >= newest:
                                break
        except TimeoutError:
            raise Busy(f"the bucket {self.name} did not answer", remedy="Check the connection to the bus.") from None
        return sorted(key for key in found if key.startswith(prefix))

    async def watch(self, kind: type[T]) -> AsyncGenerator[tuple[str, T | None], None]:
        """Every key's present value, then every change; `None` for a key that was deleted (expiry says nothing).

        A value that is no `kind` is passed over: one bad writer stops no watcher.
        """
        async with aclosing(self._follow(self.name)) as entries:
            async for heard in entries:
                key = heard.subject.split(".", 2)[2]
                if _is_gone(heard.headers, heard.data):
                    yield key, None
                else:
                    try:
                        value = msgspec.json.decode(heard.data, type=kind)
                    except _BAD_VALUE as error:
                        _log.warning("a value can't be read", bucket=self.name, key=key, error=str(error))
                        continue
                    yield key, value

    async def _read(self, key: str) -> Msg | None:
        return await self._get(f"DIRECT.GET.KV_{self.name}.{self._subject(key)}", b"")

    async def _newest(self) -> int:
        question = {"last_by_subj": f"$KV.{self.name}.>"}
        msg = await self._get(f"DIRECT.GET.KV_{self.name}", msgspec.json.encode(question))
        return _revision(msg) if msg is not None else 0

    async def _get(self, verb: str, body: bytes) -> Msg | None:
        with reaching(f"the bucket {self.name}"):
            await self._nc.stand(asyncio.get_running_loop().time() + WITHIN_S)
            msg = await self._nc.request(f"$JS.API.{verb}", body, timeout=WITHIN_S)
        status = (msg.headers or {}).get("Status")
        if status == "404":
            return None
        if status is not None:
            raise Busy(f"the bucket {self.name} answered {(msg.headers or {}).get('Description', status)}")
        return msg

    async def _write(
        self, key: str, data: bytes, *, expect: int | None = None, headers: dict[str, str] | None = None
    ) -> int:
        id = new_id()
        head = {"Nats-Msg-Id": id, **(headers or {})}
        if expect is not None:
            head["Nats-Expected-Last-Subject-Sequence"] = str(expect)
        try:
            return await self._store(self._subject(key), data, head)
        except ApiError as error:
            if error.err_code != WRONG_LAST:
                raise Rejected(f"the bus refused {self.name}/{key}: {error.problem.message}") from error
            there = await self._read(key)  # perhaps our own write, whose confirmation was lost
            if there is not None and (there.headers or {}).get("Nats-Msg-Id") == id:
                return _revision(there)
            raise Conflict(f"{self.name}/{key} was written by somebody else") from error

    def _subject(self, key: str) -> str:
        if not key or not _KEY.issuperset(key) or key[0] == "." or key[-1] == "." or ".." in key:
            raise Rejected(f"{key!r} can't be a key", remedy="Use letters, digits, '-', '_', '/', '=' and single dots.")
        return f"$KV.{self.name}.{key}"


def _is_gone(headers: dict[str, str], data: bytes) -> bool:
    return headers.get("KV-Operation") in ("DEL", "PURGE") or "Nats-Marker-Reason" in headers or not data


def _revision(msg: Msg) -> int:
    return int((msg.headers or {})["Nats-Sequence"])
