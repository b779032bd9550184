"""What the scheduler knows: the fold of the history, kept up with the stream, and who said last that it leads."""

import asyncio
from collections.abc import Callable
from typing import Any, NamedTuple

from llmos.bus import Heard
from llmos.contracts.leader import LeaderElected
from llmos.contracts.tasks import TaskCheckpointed, TaskProgressed
from llmos.errors import Busy
from llmos.service import Context
from llmos_scheduler.records import State
from llmos_scheduler.reporting import Reporting
from llmos_scheduler.state import apply

_QUIET = (TaskProgressed, TaskCheckpointed)  # nothing is to be decided because of these


class Election(NamedTuple):
    """The newest election that was heard, and its place in EVENTS."""

    sequence: int
    event: LeaderElected


class Following:
    """The state as of `applied`, the newest event that it holds."""

    def __init__(self, ctx: Context[Any]) -> None:
        self._ctx = ctx
        self._reporting = Reporting(ctx.telemetry, ctx.log)
        self._moved = asyncio.Event()
        self._live_from = 0  # what was stored before our start is not reported again
        self.state = State()
        self.applied = 0
        self.election: Election | None = None
        self.changed = asyncio.Event()  # there is something to decide
        self.on_election: Callable[[], None] = lambda: None
        self.leads: Callable[[], bool] = lambda: False

    def start_from(self, state: State, applied: int) -> None:
        """Go on from a state that was kept."""
        self.state, self.applied = state, applied

    async def run(self) -> None:
        """Hear every event after `applied`, for ever."""
        async for heard in self._ctx.bus.follow("EVENTS", start=self.applied + 1):
            self.on_event(heard)

    def on_event(self, heard: Heard) -> None:
        """The next fact of the history."""
        if heard.sequence <= self.applied:
            raise Busy(
                "the history on the bus was made anew", remedy="Start the scheduler again; it reads the new one."
            )
        event = heard.event()
        if event is not None:
            self.state = apply(self.state, event, heard.time, heard.id)
            if isinstance(event, LeaderElected):
                self.election = Election(heard.sequence, event)
                self.on_election()
            if heard.sequence > self._live_from and self.leads():  # each fact is reported by one
                self._reporting.on_event(self.state, event, heard.time)
        self.applied = heard.sequence
        self._moved.set()
        if not isinstance(event, _QUIET):
            self.changed.set()

    async def catch_up(self, newest: int) -> None:
        """Wait until everything that was said before our start is known."""
        self._live_from = newest
        await self.came_back(newest)

    async def came_back(self, sequence: int) -> None:
        """Wait until the state holds the event of this sequence."""
        while self.applied < sequence:
            self._moved.clear()
            await self._moved.wait()
