"""A job's facts as server-sent events: ids are stream sequences, so that a reader resumes where it stopped."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

from msgspec import Struct

from llmos.bus import Bus, Heard
from llmos.cancel import cancel
from llmos.contracts.subjects import token
from llmos.errors import LlmosError, NotFound, Rejected
from llmos.history import ENDS, follow_job, read, tenant_in

RETRY_MS = 1000
AHEAD = 64  # facts read ahead of a slow reader

_closing: set[asyncio.Task[None]] = set()


class Place(Struct, frozen=True):
    """Where to begin: `start` is a sequence of EVENTS; `over` says that nothing is left to say."""

    tenant: str
    start: int
    over: bool


async def find_place(bus: Bus, job: str, last_event_id: str) -> Place:
    """Where a reader of a job goes on. Raises `NotFound` for a job that nobody submitted, `Rejected` for a bad id."""
    if last_event_id and not (last_event_id.isascii() and last_event_id.isdigit()):
        raise Rejected(
            f"{last_event_id!r} is no event id", remedy="Send the id of an event of this stream.", param="Last-Event-ID"
        )
    start = int(last_event_id or 0) + 1
    facts = await read(bus, "EVENTS", [f"llmos.evt.job.*.*.{token(job)}"])
    if not facts and not await bus.last_sequence("JOBS", f"llmos.job.submit.*.{job}"):
        raise NotFound(f"there is no job {job!r}", remedy="See GET /v1/jobs.", param="job")
    tenant = tenant_in(facts[0]) if facts else "*"
    ends = [fact.sequence for fact in facts if tenant_in(fact) == tenant and isinstance(fact.event(), ENDS)]
    return Place(tenant, start, bool(ends) and ends[-1] < start)


async def stream_events(
    bus: Bus, job: str, place: Place, stopping: asyncio.Event, keep_alive_s: float
) -> AsyncGenerator[bytes, None]:
    """The stream's bytes, until the job has ended or the gateway stops (the reader then resumes elsewhere).

    The history is followed in a task of its own: the server cancels this generator without letting it await anything.
    """
    queue: asyncio.Queue[Heard | None] = asyncio.Queue(AHEAD)
    pumping = asyncio.create_task(_pump(bus, job, place, queue))
    stopped = asyncio.create_task(_end(stopping, queue))
    try:
        yield f"retry: {RETRY_MS}\n\n".encode()
        while not stopping.is_set():
            try:
                heard = await asyncio.wait_for(queue.get(), keep_alive_s)
            except TimeoutError:
                yield b": keep-alive\n\n"
                continue
            if heard is None:
                return
            yield encode(heard)
    finally:
        closing = asyncio.create_task(cancel(pumping, stopped))
        _closing.add(closing)
        closing.add_done_callback(_closing.discard)


async def _pump(bus: Bus, job: str, place: Place, queue: asyncio.Queue[Heard | None]) -> None:
    with suppress(LlmosError):  # the bus is gone: the stream ends, and its reader resumes
        async with aclosing(follow_job(bus, job, place.start, tenant=place.tenant)) as facts:
            async for heard, _ in facts:
                await queue.put(heard)
    await queue.put(None)


async def _end(stopping: asyncio.Event, queue: asyncio.Queue[Heard | None]) -> None:
    await stopping.wait()
    with suppress(asyncio.QueueFull):  # then the reader is not waiting for the queue
        queue.put_nowait(None)


def encode(heard: Heard) -> bytes:
    """One event: `id` its sequence, `event` such as `task.progressed`, `data` the fact as it was stored."""
    lines: Sequence[str] = heard.data.decode("utf-8", "replace").splitlines() or [""]
    noun, fact = heard.subject.split(".")[2:4]
    data = "".join(f"data: {line}\n" for line in lines)
    return f"id: {heard.sequence}\nevent: {noun}.{fact}\n{data}\n".encode()
