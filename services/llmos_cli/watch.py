"""Live progress of a job on stderr: a bar on a terminal, one line a change elsewhere."""

import sys
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from msgspec import Struct

from llmos.contracts.tasks import TaskProgressed
from llmos.history import ENDS
from llmos_cli.exits import say
from llmos_cli.telling import tell, tell_progress

LINE_EVERY_S = 5.0


class Clock(Protocol):
    def __call__(self) -> float: ...


async def watch(events: AsyncIterator[Struct], clock: Clock) -> None:
    """Show a job's facts until it has ended. `clock` gives monotonic seconds."""
    screen = _Bar() if sys.stderr.isatty() else _Lines(clock)
    with screen:
        async for event in events:
            if isinstance(event, TaskProgressed):
                screen.progress(event)
            elif line := tell(event):
                screen.fact(line)
            if isinstance(event, ENDS):
                return


class _Lines(nullcontext[None]):
    """Plain lines; progress at most every 5 s, and whenever the phase changes."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._said = float("-inf")
        self._phase = ""

    def fact(self, line: str) -> None:
        say(line)

    def progress(self, event: TaskProgressed) -> None:
        phase = f"{event.kind} {event.phase}"
        if phase != self._phase or self._clock() - self._said >= LINE_EVERY_S:
            self._phase, self._said = phase, self._clock()
            say(tell_progress(event))


class _Bar(AbstractContextManager["_Bar"]):
    """Facts scroll by above one bar that shows the running task."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._bar = Progress(
            BarColumn(30), TextColumn("{task.description}"), console=Console(stderr=True), transient=True
        )
        self._task = self._bar.add_task("waiting", total=1.0)

    def __enter__(self) -> "_Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def fact(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)

    def progress(self, event: TaskProgressed) -> None:
        self._bar.update(self._task, completed=event.fraction, description=tell_progress(event).replace("[", "\\["))
