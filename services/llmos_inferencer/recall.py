"""Requests whose askers want no answer any more, remembered for as long as they may still be under way."""

from collections import OrderedDict

KEPT = 4096


class Recalled:
    """The newest ids that were recalled."""

    def __init__(self) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()

    def add(self, id: str) -> None:
        """Nobody wants the answer to this request."""
        self._ids[id] = None
        if len(self._ids) > KEPT:
            self._ids.popitem(last=False)

    def __contains__(self, id: str) -> bool:
        return id in self._ids
