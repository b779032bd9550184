"""Hear EVENTS from where the log stands, notice what is missing, and hand entries on in order."""

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
CHECK_S = 5.0  # how often to look whether the stream is still the same
RETRY_S = 1.0


class Hearing:
    """The stream as a sequence of entries; `position` runs ahead of the log by what `put` has not stored yet."""

    def __init__(self, bus: Bus, position: Position, put: Callable[[LogEntry], Awaitable[None]], log: Any) -> None:
        self.position = position
        self._bus = bus
        self._put = put
        self._log = log

    async def run(self) -> None:
        """Hear until cancelled; starts again from 1 when the stream was made anew."""
        while True:
            state = await self._state()
            if state.last < self.position.sequence:
                await self._take(stream_remade(self.position, state.last))
            hear = asyncio.create_task(self._hear())
            watch = asyncio.create_task(self._watch(state))
            try:
                await asyncio.wait({hear, watch}, return_when=asyncio.FIRST_COMPLETED)
                heard_to_the_end = hear.done()
            finally:
                await cancel(watch, hear)
            if heard_to_the_end:
                hear.result()
            else:
                await self._take(stream_remade(self.position, watch.result().last))

    async def _hear(self) -> None:
        """Follow the stream; returns when what it brings can't be of the stream that was heard so far."""
        start = self.position.sequence + (self.position.event is None)  # the newest event again, to compare
        async for heard in self._bus.follow(STREAM, start=max(1, start)):
            entry = entry_of(heard.sequence, heard.subject, heard.headers, heard.data)
            for each in decide(self.position, entry):
                await self._take(each)
                if each.subject == REMADE:
                    return

    async def _watch(self, known: StreamState) -> StreamState:
        """Returns when the stream is another one, or shorter than what was heard of it."""
        while True:
            await asyncio.sleep(CHECK_S)
            state = await self._state()
            if state.created != known.created or state.last < self.position.sequence:
                return state

    async def _take(self, entry: LogEntry) -> None:
        if entry.subject in (GAP, REMADE):
            self._log.warning("events are missing", entry=entry.subject, data=entry.data)
        await self._put(entry)
        self.position = apply(self.position, entry)

    async def _state(self) -> StreamState:
        while True:
            try:
                return await self._bus.stream_state(STREAM)
            except LlmosError as error:  # the bus is away, or the stream is being made
                self._log.info("the stream can't be seen", error=str(error))
                await asyncio.sleep(RETRY_S)
