"""Time as a value that can be handed in: wall-clock nanoseconds for facts, monotonic seconds for waits."""

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What a shell needs of time; a core gets `now` as an argument instead."""

    def now(self) -> float:
        """Wall-clock seconds since the Unix epoch."""

    def monotonic(self) -> float:
        """Seconds that never go back."""


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()


def rfc3339(seconds: float) -> str:
    """Format Unix seconds as `2026-11-23T17:00:00.123456Z`."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
