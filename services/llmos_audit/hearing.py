"""Hear EVENTS from where the log stands, and hand what was heard on in batches, in order and with what is missing.

A batch is handed on only after the stream is seen to be still the one that the batch was asked of: so no message of a
stream that was made anew ever passes for the next one of the old.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from llmos.bus import Bus, StreamState
from llmos.cancel import cancel
from llmos.contracts.audit import GAP, REMADE, LogEntry
from llmos.errors import LlmosError
from llmos_audit.core import decide, entry_of, stream_remade
from llmos_audit.state import Position, apply

STREAM = "EVENTS"
WAITING = 1024  # messages heard and not yet handed on; at most 64 KiB each
CHECK_S = 5.0  # how often to look at an idle stream
RETRY_S = 1.0


class Hearing:
    """The stream as batches of entries.

    `store` gets each batch and returns when it is in the log; `room` says how many entries a batch may have, `batch_s`
    how long its first one may wait for others, in seconds.
    """

    def __init__(
        self,
        bus: Bus,
        position: Position,
        store: Callable[[list[LogEntry]], Awaitable[None]],
        *,
        room: Callable[[], int],
        batch_s: float,
        log: Any,
    ) -> None:
        self._bus = bus
        self._position = position
        self._store = store
        self._room = room
        self._batch_s = batch_s
        self._log = log
        self._heard: asyncio.Queue[LogEntry] = asyncio.Queue(WAITING)

    @property
    def waiting(self) -> int:
        """Messages heard and not yet handed on."""
        return self._heard.qsize()

    async def run(self) -> None:
        """Hear until cancelled; from the beginning again when the stream was made anew."""
        while True:
            self._heard = asyncio.Queue(WAITING)
            known = await self._state()
            parts = [asyncio.create_task(self._hear()), asyncio.create_task(self._hand_on(known))]
            try:
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel(*parts)
            for part in parts:
                if not part.cancelled():
                    part.result()

    async def _hear(self) -> None:
        newest = self._position.sequence
        start = newest if self._position.event else newest + 1  # the newest event again, to compare
        async for heard in self._bus.follow(STREAM, start=max(1, start)):
            await self._heard.put(entry_of(heard.sequence, heard.subject, heard.headers, heard.data))

    async def _hand_on(self, known: StreamState) -> None:
        """Store batch after batch; returns when the stream turns out to be another one."""
        while True:
            batch = await self._batch()
            state = await self._state()
            if state.created != known.created or state.last < self._position.sequence:
                await self._take([stream_remade(self._position, state.last)])
                return
            entries, position = [], self._position
            for heard in batch:
                for entry in decide(position, heard):
                    entries.append(entry)
                    position = apply(position, entry)
                if position.sequence == 0:
                    break  # made anew: what else was heard has to be heard again, after the beginning
            await self._take(entries)
            if self._position.sequence == 0 and batch:
                return

    async def _batch(self) -> list[LogEntry]:
        """What came within `batch_s` of the first; nothing, if none came for `CHECK_S`."""
        batch: list[LogEntry] = []
        room = self._room()
        try:
            async with asyncio.timeout(CHECK_S) as limit:
                while len(batch) < room:
                    batch.append(await self._heard.get())
                    if len(batch) == 1:
                        limit.reschedule(asyncio.get_running_loop().time() + self._batch_s)
        except TimeoutError:
            pass  # what came until now is the batch
        return batch

    async def _take(self, entries: list[LogEntry]) -> None:
        for entry in entries:
            if entry.subject in (GAP, REMADE):
                self._log.warning("events are missing", entry=entry.subject, data=entry.data)
        if entries:
            await self._store(entries)
            self._position = apply(self._position, entries[-1])

    async def _state(self) -> StreamState:
        while True:
            try:
                return await self._bus.stream_state(STREAM)
            except LlmosError as error:  # the bus is away, or the stream is being made
                self._log.info("the stream can't be seen", error=str(error))
                await asyncio.sleep(RETRY_S)
