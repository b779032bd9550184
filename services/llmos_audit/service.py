"""The audit service: takes every event into the log, in batches, and answers what is asked of it."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import lru_cache, partial
from typing import Any, TypeVar

from msgspec import Struct
from msgspec.json import encode

from llmos.auditfiles import LogFiles, decode_entry, log_directory
from llmos.auditlog import inclusion_proof
from llmos.cancel import cancel
from llmos.contracts.audit import (
    CheckpointAnswered,
    CheckpointRequested,
    EntriesAnswered,
    EntriesRequested,
    EntryView,
    LogEntry,
    ProofAnswered,
    ProofRequested,
)
from llmos.contracts.envelope import Envelope
from llmos.errors import NotFound, Rejected
from llmos.service import Context
from llmos_audit.config import AuditConfig
from llmos_audit.hearing import Hearing
from llmos_audit.identity import open_log
from llmos_audit.index import Index

ANSWER_LIMIT = 384 * 1024  # bytes of entries in one answer
MOST_ENTRIES = 4096  # in one answer; of the smallest, no more fit
T = TypeVar("T")
Handler = Callable[[Any, Envelope], Awaitable[Struct]]


class AuditService:
    """One log, its index and its readers. Everything that touches log or index runs in one thread."""

    def __init__(self, context: Context[AuditConfig]) -> None:
        self._context = context
        self._thread = ThreadPoolExecutor(1, "log")
        self._directory = log_directory(context.config.data_dir)
        self._closing = ExitStack()

    async def run(self) -> None:
        """Open the log, hear and answer until told to stop, close. What is not written yet is heard again next time."""
        context = self._context
        try:
            await self._in_thread(self._open)
            hearing = Hearing(
                context.bus,
                self._writer.position,
                self._append,
                room=lambda: self._writer.room,
                batch_s=context.config.batch_s,
                log=context.log,
            )
            parts = [
                asyncio.create_task(hearing.run()),
                asyncio.create_task(context.bus.serve("audit", self._handlers())),
            ]
            stopping = asyncio.create_task(context.stopping.wait())
            context.announce(load=lambda: {"entries": float(self._writer.size), "waiting": float(hearing.waiting)})
            try:
                await asyncio.wait({*parts, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel(*parts, stopping)
            for part in parts:
                if not part.cancelled():
                    part.result()
        finally:
            self._thread.shutdown()  # a batch that is being written is finished first
            self._closing.close()

    def _open(self) -> None:
        config = self._context.config
        self._writer, files = open_log(config.data_dir, config.log_name)
        self._closing.callback(files.close)
        log = LogFiles.at(self._directory)
        self._index = Index(config.data_dir / "audit-index.sqlite", log, self._writer.size)
        self._closing.callback(self._index.close)
        self._context.log.info("log opened", log=config.log_name, entries=self._writer.size)

    async def _append(self, batch: list[LogEntry]) -> None:
        await self._in_thread(partial(self._store, batch))
        self._context.telemetry.count("llmos.audit.entries", len(batch))

    def _store(self, batch: list[LogEntry]) -> None:
        self._writer.append(batch)
        self._index.add(batch)

    async def _in_thread(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, action)

    # --- answering ---

    def _handlers(self) -> dict[str, Handler]:
        return {"checkpoint": self._on_checkpoint, "prove": self._on_prove, "entries": self._on_entries}

    async def _on_checkpoint(self, _request: CheckpointRequested, _envelope: Envelope) -> CheckpointAnswered:
        return CheckpointAnswered(self._writer.note, str(self._writer.verifier))

    async def _on_prove(self, request: ProofRequested, _envelope: Envelope) -> ProofAnswered:
        return await self._in_thread(lambda: self._prove(request))

    async def _on_entries(self, request: EntriesRequested, _envelope: Envelope) -> EntriesAnswered:
        return await self._in_thread(lambda: self._entries(request))

    def _prove(self, request: ProofRequested) -> ProofAnswered:
        if (request.index is None) == (request.event is None):
            raise Rejected("a proof is asked for by index or by event", remedy="Give one of `index` and `event`.")
        place = self._index.event(request.event) if request.event is not None else request.index
        if place is None:
            raise NotFound(
                f"no event {request.event} is in the log of {self._writer.size} entries",
                remedy="An event is there a moment after it was said; look at its id.",
                param="event",
            )
        proof = inclusion_proof(self._directory, place)
        if request.event is not None and proof.entry.event != request.event:
            raise Rejected(f"entry {place} is not the event {request.event}", remedy="Verify the log.")
        return proof

    def _entries(self, request: EntriesRequested) -> EntriesAnswered:
        """As many as are asked for and fit into an answer; the asker goes on after the last one's index."""
        if request.start < 0 or request.limit < 1:
            raise Rejected("entries are asked for from `start` 0 on, at least one", param="start")
        log = LogFiles(lru_cache(maxsize=4)(lambda name: (self._directory / name).read_bytes()))
        size = self._writer.size
        if request.job is None:
            places: Sequence[int] = range(request.start, min(size, request.start + request.limit))
        else:
            places = self._index.job(request.job, request.start, min(request.limit, MOST_ENTRIES))
        views: list[EntryView] = []
        room = ANSWER_LIMIT
        for place in places:
            (data,) = log.entries(place, place + 1, size)
            view = EntryView(place, decode_entry(data))
            room -= len(encode(view))
            if room < 0 and views:
                break
            views.append(view)
        return EntriesAnswered(size, views)


async def serve(context: Context[AuditConfig]) -> None:
    """Run the audit service until it is told to stop."""
    await AuditService(context).run()
