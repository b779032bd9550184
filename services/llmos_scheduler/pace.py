"""When a command that the state keeps asking for is due again. Forgetting all of it at a restart is harmless."""

from collections.abc import Iterable

from llmos_scheduler.effects import Command


class Pace:
    """Remembers when each command that is still wanted was last performed."""

    def __init__(self) -> None:
        self._done: dict[str, float] = {}

    def want(self, commands: Iterable[Command]) -> None:
        """Forget every command that is not among those wanted now."""
        keys = {command.key for command in commands}
        self._done = {key: at for key, at in self._done.items() if key in keys}

    def due(self, command: Command, now: float) -> bool:
        """Whether it was never performed, or longer than `command.again` seconds ago."""
        done = self._done.get(command.key)
        return done is None or now - done >= command.again

    def done(self, command: Command, now: float) -> None:
        """It was performed; a command that failed is not marked and stays due."""
        self._done[command.key] = now
