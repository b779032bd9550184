"""When what has to be looked at again. Pure."""

from heapq import heappop, heappush
from math import inf


class Agenda:
    """Names, each with at most one time."""

    def __init__(self) -> None:
        self._at: dict[str, float] = {}
        self._heap: list[tuple[float, str]] = []

    def set(self, name: str, at: float = inf) -> None:
        """At this time; `inf`: not at all."""
        if at == inf:
            self._at.pop(name, None)
        elif self._at.get(name) != at:
            self._at[name] = at
            heappush(self._heap, (at, name))

    def due(self, now: float) -> list[str]:
        """The names whose time has come; they are taken off."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            at, name = heappop(self._heap)
            if self._at.get(name) == at:
                del self._at[name]
                found.append(name)
        return found
