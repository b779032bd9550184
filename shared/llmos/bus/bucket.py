"""Key-value buckets with typed values: small state that is written with compare-and-set."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Generic, TypeVar

import msgspec
import nats.errors
import nats.js.errors
import structlog
from msgspec import Struct
from nats.js.kv import KeyValue

from llmos.bus.follow import Heard
from llmos.errors import Busy, LlmosError

T = TypeVar("T")
_log: Any = structlog.get_logger("llmos.bus")
_RETRY = (nats.errors.TimeoutError, nats.js.errors.NoStreamResponseError, nats.js.errors.ServiceUnavailableError)


class Conflict(LlmosError):
    """Somebody else wrote the key first: read again, decide again."""

    code = "conflict"


class Entry(Struct, Generic[T], frozen=True):
    """A value and the revision to name when replacing it."""

    key: str
    value: T
    revision: int


class Bucket:
    """One bucket. Values are JSON; keys are subject tokens joined by dots. Raises `Busy` when the bus is silent."""

    def __init__(
        self,
        name: str,
        open_bucket: Callable[[str], Awaitable[KeyValue]],
        follow: Callable[[str], AsyncIterator[Heard]],
    ) -> None:
        self.name = name
        self._open = open_bucket
        self._follow = follow
        self._kv: KeyValue | None = None

    async def get(self, key: str, kind: type[T]) -> Entry[T] | None:
        """The newest value of a key, or `None`."""
        try:
            entry = await self._run(lambda kv: kv.get(key))
        except (nats.js.errors.KeyNotFoundError, nats.js.errors.KeyDeletedError):
            return None
        return Entry(key, msgspec.json.decode(entry.value or b"null", type=kind), int(entry.revision or 0))

    async def put(self, key: str, value: Any) -> int:
        """Write without comparing; persisted when it returns. The new revision."""
        return int(await self._run(lambda kv: kv.put(key, msgspec.json.encode(value))))

    async def create(self, key: str, value: Any) -> int:
        """Write a key that does not exist. Raises `Conflict` if it does."""
        try:
            return int(await self._run(lambda kv: kv.create(key, msgspec.json.encode(value))))
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise Conflict(f"{self.name}/{key} exists already") from error

    async def update(self, key: str, value: Any, revision: int) -> int:
        """Replace the value that has `revision`. Raises `Conflict` if it is no longer the newest."""
        try:
            return int(await self._run(lambda kv: kv.update(key, msgspec.json.encode(value), last=revision)))
        except nats.js.errors.KeyWrongLastSequenceError as error:
            raise Conflict(f"{self.name}/{key} was written by somebody else") from error

    async def delete(self, key: str) -> None:
        """Remove a key; removing what is not there changes nothing."""
        await self._run(lambda kv: kv.delete(key))

    async def keys(self, prefix: str = "") -> list[str]:
        """The keys that start with `prefix`, sorted."""
        try:
            keys = await self._run(lambda kv: kv.keys())
        except nats.js.errors.NoKeysError:
            return []
        return sorted(key for key in keys if key.startswith(prefix))

    async def watch(self, kind: type[T]) -> AsyncIterator[tuple[str, T | None]]:
        """Every key's present value, then every change; `None` for a key that was deleted (expiry says nothing).

        A value that is no `kind` is passed over: one bad writer stops no watcher.
        """
        async for heard in self._follow(self.name):
            key = heard.subject.split(".", 2)[2]
            if heard.headers.get("KV-Operation") in ("DEL", "PURGE") or not heard.data:
                yield key, None
            else:
                try:
                    value = msgspec.json.decode(heard.data, type=kind)
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    _log.warning("a value can't be read", bucket=self.name, key=key, error=str(error))
                    continue
                yield key, value

    async def _run(self, action: Callable[[KeyValue], Awaitable[Any]]) -> Any:
        try:
            if self._kv is None:
                self._kv = await self._open(self.name)
            return await action(self._kv)
        except _RETRY as error:
            raise Busy(f"the bucket {self.name} did not answer", remedy="Check the connection to the bus.") from error
