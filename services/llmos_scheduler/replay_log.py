"""Gets the history of a running system for a replay: from a file of exported events, or over its bus."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import NamedTuple

from msgspec import Raw

from llmos.client import Client
from llmos_scheduler.logged import TYPES, Fact, Log, fold, read_lines
from llmos_scheduler.replay_logged import LoggedTrace, trace_of

NEWEST = "here"  # the stack that LLMOS_NATS_URL names, or that runs here
SCHEMES = ("nats://", "tls://", "ws://", "wss://")


class ReadLog(NamedTuple):
    """A history that can be replayed, and a sentence about it."""

    trace: LoggedTrace
    told: str


def read_log(source: str) -> ReadLog:
    """The history in a file, of the bus at a URL, or of `NEWEST`. Raises `LlmosError`, `OSError`."""
    if source == NEWEST or source.startswith(SCHEMES):
        log = fold(asyncio.run(_read_bus("" if source == NEWEST else source)))
    else:
        with Path(source).open("rb") as file:
            log = fold(read_lines(file, source))
    trace = trace_of(log)
    return ReadLog(trace, _tell(log, trace))


async def _read_bus(url: str) -> Iterator[Fact]:
    """The facts that matter to a replay and are kept at this moment. Never asks for progress, which is the most."""
    found: list[Fact] = []
    filters = [f"llmos.evt.{kind.split('.')[1]}.{kind.split('.')[2]}.*.*" for kind in TYPES]
    async with await Client.connect(url or None) as client:
        newest = max([await client.bus.last_sequence("EVENTS", subject) for subject in filters])
        if newest:
            async with aclosing(client.bus.follow("EVENTS", filters)) as history:
                async for heard in history:
                    _, _, noun, word, *_ = heard.subject.split(".")
                    found.append(Fact(heard.time, f"llmos.{noun}.{word}.v1", Raw(heard.data)))
                    if heard.sequence >= newest:
                        break
    return iter(found)


def _tell(log: Log, trace: LoggedTrace) -> str:
    left = len(log.jobs) - len(trace.arrivals)
    nodes = f"{len(trace.nodes)} node{'s' * (len(trace.nodes) != 1)}"
    parts = [f"{log.facts} events, {len(trace.arrivals)} jobs on {nodes}"]
    if trace.guessed:
        parts.append(f"{len(trace.guessed)} had not ended: they load the cluster, and are not counted")
    if left:
        parts.append(f"{left} never held {trace.unit} and are left out")
    return "; ".join(parts) + "."
