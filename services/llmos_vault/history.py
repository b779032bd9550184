"""Following the history, and knowing when everything that was said before a question has been heard."""

import asyncio
from collections.abc import Sequence

import msgspec

from llmos.bus import Bus, Heard
from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.subjects import event_filter
from llmos.errors import Busy
from llmos_vault.state import FACTS, State, apply

STREAMS: dict[str, list[str]] = {
    "EVENTS": [event_filter(kind) for kind in FACTS],
    "DEPLOY": ["llmos.deploy.*.*"],
}
PATIENCE_S = 10.0


class History:
    """The vault's state, folded from EVENTS and DEPLOY by `follow`, and read by `caught_up`."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._state = State()
        self._heard = dict.fromkeys(STREAMS, 0)
        self._moved = asyncio.Condition()

    async def follow(self, stream: str) -> None:
        """Fold a stream from its beginning; runs until cancelled."""
        async for heard in self._bus.follow(stream, STREAMS[stream], last_per_subject=stream == "DEPLOY"):
            fact = _decode(heard)
            if fact is not None:
                self._state = apply(self._state, fact)
            async with self._moved:
                self._heard[stream] = heard.sequence
                self._moved.notify_all()

    async def caught_up(self, *, patience: float | None = PATIENCE_S) -> State:
        """The state after everything that was stored when this was called. Raises `Busy` when that takes too long.

        `patience` is in seconds; `None` waits for ever. Whoever was given a task asks only after its placement was
        stored, so a denial never rests on a late fold; and a vault that has just started decides nothing on half of
        the history.
        """
        behind = {stream: await self._newest(stream, filters) for stream, filters in STREAMS.items()}
        try:
            async with asyncio.timeout(patience), self._moved:
                await self._moved.wait_for(lambda: all(self._heard[s] >= newest for s, newest in behind.items()))
        except TimeoutError:
            raise Busy("the vault is still reading the history", remedy="Ask again.") from None
        return self._state

    async def _newest(self, stream: str, filters: Sequence[str]) -> int:
        return max(await asyncio.gather(*(self._bus.last_sequence(stream, filter) for filter in filters)))


def _decode(heard: Heard) -> msgspec.Struct | None:
    if not heard.subject.startswith("llmos.deploy."):
        return heard.event()
    try:
        assigned = msgspec.json.decode(heard.data, type=ReplicaAssigned)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    # The subject is what a publisher's permission covers, so the body must not claim another place.
    return assigned if heard.subject == f"llmos.deploy.{assigned.node}.{assigned.deployment}" else None
