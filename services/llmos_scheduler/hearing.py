"""Hearing heartbeats: the newest of each service, and since when the bus has been heard without a gap."""

from typing import Any

from llmos.contracts.nodes import HEARTBEAT_S, LOST_AFTER_S, Heartbeat
from llmos.ids import is_token
from llmos.service import Context
from llmos_scheduler.presence import Beat, hear

DEAF_S = 2.5 * HEARTBEAT_S  # without our own heartbeat for so long, we can't judge the silence of others


class Hearing:
    """The heartbeats by key `<node>.<service>`. `news` says that one came or went since it was last cleared."""

    def __init__(self, ctx: Context[Any], wake: Any) -> None:
        self._ctx = ctx
        self._wake = wake
        self._own_heard = self._since = ctx.clock.now()
        self.beats: dict[str, Beat] = {}
        self.news = True

    def since(self, now: float) -> float:
        """From when on the silence of others counts."""
        return now if now - self._own_heard > DEAF_S else self._since

    async def run(self) -> None:
        """Hear heartbeats for ever. Our own is the proof that we hear at all."""
        own = f"{self._ctx.node}.{self._ctx.name}"
        self._own_heard = self._since = self._ctx.clock.now()
        async for key, heartbeat in self._ctx.bus.bucket("nodes").watch(Heartbeat):
            now = self._ctx.clock.now()
            known = self.beats.get(key)
            if heartbeat is None:
                if known is not None:
                    self.beats[key] = Beat(known.heartbeat, known.heard_at, retired=True)
            elif (
                key == f"{heartbeat.node}.{heartbeat.service}"
                and is_token(heartbeat.node)
                and is_token(heartbeat.service)
            ):
                self.beats[key] = hear(known, heartbeat, now)
            if key == own:
                if now - self._own_heard > DEAF_S:
                    self._since = now
                self._own_heard = now
            if (
                known is None
                or heartbeat is None
                or known.retired
                or now - known.heard_at >= LOST_AFTER_S
                or (known.heartbeat.kinds, known.heartbeat.memory) != (heartbeat.kinds, heartbeat.memory)
            ):
                self.news = True
                self._wake()
