"""Snapshots: the state as bytes in the artifact store, so that a start reads only the tail of the history.

A snapshot is trusted only by the code that wrote it: its format is a digest of this package's source and of the shape
of every record. What does not fit (another format, another stream, an address without bytes, a tail that has expired)
means the whole history, which is always right.
"""

import asyncio
import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from importlib.resources import files
from typing import Any, get_args, get_type_hints

import msgspec
from msgspec import Struct

from llmos.bus import StreamState
from llmos.contracts.leader import SnapshotPointer
from llmos.errors import LlmosError
from llmos.service import Context
from llmos_scheduler.following import Following
from llmos_scheduler.records import State

KEY = "scheduler.snapshot"
LARGEST = 1 << 31  # bytes of a snapshot that is read
EVENTS_BETWEEN = 50_000
SECONDS_BETWEEN = 600.0
LOOK_S = 5.0
EVENTS_A_JOB = 4  # at least, for each job in the state: the cost of a snapshot grows with them
LEAST = 1_000  # events that are not worth one
MOST_AT_END = 30_000  # jobs in the state

# The part of the state that is kept: what takes no part in its equality is a cache or a journal.
_HINTS = get_type_hints(State)
_Kept = msgspec.defstruct("_Kept", [(f.name, _HINTS[f.name]) for f in fields(State) if f.compare])
_decoder = msgspec.msgpack.Decoder(_Kept)
_encoder = msgspec.msgpack.Encoder()


def encode(state: State) -> bytes:
    """The state as MessagePack: equal states that were made in the same order give equal bytes."""
    return _encoder.encode(_Kept(*(getattr(state, name) for name in _Kept.__struct_fields__)))


def decode(data: bytes) -> State:
    """The state of `encode`. Raises `msgspec.DecodeError` for bytes of another shape."""
    kept = _decoder.decode(data)
    return State(**{name: getattr(kept, name) for name in _Kept.__struct_fields__})


@cache
def format_of_code() -> str:
    """What a snapshot's bytes mean: another version of the records, or of what folds events into them, is another."""
    digest = hashlib.sha256()
    for module in sorted(files(__package__).iterdir(), key=lambda item: item.name):
        if module.name.endswith(".py"):
            digest.update(module.read_bytes())
    for line in sorted(set(_shape(State, set()))):
        digest.update(line.encode())
    return digest.hexdigest()[:16]


def _shape(kind: Any, seen: set[Any]) -> Iterator[str]:
    """One line for each record that `kind` is made of: its fields, their types and defaults."""
    if kind in seen:
        return
    seen.add(kind)
    for part in get_args(kind):
        if not isinstance(part, str | int | bool | None):
            yield from _shape(part, seen)
    if isinstance(kind, type) and (is_dataclass(kind) or issubclass(kind, Struct)):
        hints = get_type_hints(kind)
        yield f"{kind.__module__}.{kind.__qualname__}: {sorted((name, str(hint)) for name, hint in hints.items())}"
        for hint in hints.values():
            yield from _shape(hint, seen)


class Snapshots:
    """Reading and writing them. A stack keeps one: the newest."""

    def __init__(self, ctx: Context[Any], following: Following) -> None:
        self._ctx = ctx
        self._following = following
        self._bucket = ctx.bus.bucket("state")
        self._format = format_of_code()
        self._kept: SnapshotPointer | None = None
        self._created = ""  # when the stream was made

    async def load(self, history: StreamState) -> None:
        """Let the following start from the snapshot, if there is one that fits the history."""
        self._created = history.created
        try:
            entry = await self._bucket.get(KEY, SnapshotPointer)
            if entry is None:
                return
            pointer = entry.value
            if (pointer.format, pointer.created) != (self._format, history.created):
                self._ctx.log.info("the snapshot is of another version; reading the whole history")
                return
            if not history.first - 1 <= pointer.sequence <= history.last:
                self._ctx.log.warning("the snapshot does not meet the history", sequence=pointer.sequence)
                return
            packed = await self._ctx.store.get_bytes(pointer.address, limit=LARGEST)
            state = await asyncio.to_thread(lambda: decode(zlib.decompress(packed)))
        except (LlmosError, msgspec.DecodeError, zlib.error) as error:
            self._ctx.log.warning("no snapshot; reading the whole history", error=str(error))
            return
        self._following.start_from(state, pointer.sequence)
        self._kept = pointer
        self._ctx.log.info("starts from a snapshot", sequence=pointer.sequence, tail=history.last - pointer.sequence)

    async def run(self) -> None:
        """Keep one, every so many events or seconds, for as long as we lead."""
        while True:
            await asyncio.sleep(LOOK_S)
            new, jobs = self._new(), len(self._following.state.jobs)
            late = self._ctx.clock.now() - (self._kept.at if self._kept else 0.0) >= SECONDS_BETWEEN
            if new >= max(EVENTS_BETWEEN, EVENTS_A_JOB * jobs) or (new >= max(LEAST, jobs // 4) and late):
                await self.save()

    async def save_at_end(self) -> None:
        """Keep one before we stop, unless that takes longer than the next start would gain."""
        if self._new() >= LEAST and len(self._following.state.jobs) <= MOST_AT_END:
            await self.save()

    async def save(self) -> None:
        """Keep the state as it is now. A failure is logged: the one before it stays good."""
        if not self._new():
            return
        sequence, before = self._following.applied, self._kept
        data = encode(self._following.state)  # in one piece: the state changes with the next event
        try:
            address = await self._ctx.store.put_bytes(await asyncio.to_thread(zlib.compress, data, 1))
            pointer = SnapshotPointer(sequence, self._created, address, self._format, self._ctx.clock.now())
            await self._bucket.put(KEY, pointer)
            self._kept = pointer
            if before is not None and before.address != address:
                await self._ctx.store.remove(before.address)
        except LlmosError as error:
            self._ctx.log.warning("no snapshot was kept", error=str(error))
            return
        self._ctx.log.info("snapshot", sequence=sequence, bytes=len(data))

    def _new(self) -> int:
        """Events since the newest snapshot that we know."""
        return self._following.applied - (self._kept.sequence if self._kept else 0)
