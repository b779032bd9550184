"""The commands that the state asks for, and when each is due: at once, then again every `again` seconds for as long as
it is wanted. Forgetting all of it is harmless: whatever is wanted is then due once more."""

from collections.abc import Iterable
from heapq import heappop, heappush

from llmos_scheduler.effects import Command

ALWAYS = float("-inf")


class Wanted:
    """Commands by owner (a job, a deployment, …); each command's `key` is unique among all of them."""

    def __init__(self) -> None:
        self._owned: dict[str, dict[str, Command]] = {}
        self._due: dict[str, float] = {}
        self._heap: list[tuple[float, int, str]] = []
        self._commands: dict[str, Command] = {}
        self._number = 0

    def set(self, owner: str, commands: Iterable[Command]) -> None:
        """From now on the owner wants these. One that it wanted already keeps its time."""
        before = self._owned.pop(owner, {})
        after = {command.key: command for command in commands}
        for key in before:
            if key not in after:
                del self._commands[key], self._due[key]
        for key, command in after.items():
            self._commands[key] = command
            if key not in before:
                self._at(key, ALWAYS)
        if after:
            self._owned[owner] = after

    def due(self, now: float) -> list[Command]:
        """Those that are due, in the order in which they became due; each is due again later."""
        found: list[Command] = []
        while self._heap and self._heap[0][0] <= now:
            at, _, key = heappop(self._heap)
            if self._due.get(key) == at:
                found.append(self._commands[key])
                del self._due[key]
        for command in found:
            self._at(command.key, now + command.again)
        return found

    def ask_again(self) -> None:
        """One of them could not be performed: all are due."""
        for key in self._commands:
            self._at(key, ALWAYS)

    def all(self) -> dict[str, Command]:
        """Every command that is wanted, by key."""
        return self._commands

    def _at(self, key: str, time: float) -> None:
        self._due[key] = time
        self._number += 1
        heappush(self._heap, (time, self._number, key))
