"""Bringing a model version into memory: staged, verified, opened, warmed up, within the budget of all sessions
together.
"""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable
from operator import itemgetter
from pathlib import Path

from llmos.artifacts import Cipher
from llmos.clock import Clock
from llmos.contracts.models import ModelVersion
from llmos.errors import Rejected
from llmos_inferencer import devices, memory
from llmos_inferencer.core import Resident, make_room
from llmos_inferencer.engine import Engine, Means, OutOfMemory, load
from llmos_inferencer.meter import Meter
from llmos_inferencer.sessions import Session, Track
from llmos_inferencer.staging import Staging
from llmos_inferencer.state import Lease
from llmos_inferencer.trust import Trust

PREPACKED = 2  # a session keeps weights that were rearranged beside those of the file, until one has been measured
Unload = Callable[[Track, str], Awaitable[None]]


class Loader:
    """Loads one session at a time. `tracks` gives every track; `unload(track, reason)` takes a session
    out and waits.
    """

    def __init__(
        self,
        trust: Trust,
        staging: Staging,
        *,
        budget: int,
        threads: int,
        tracks: Callable[[], Iterable[Track]],
        unload: Unload,
        unsealing: Callable[[str, str], Awaitable[Cipher]],
        clock: Clock,
    ) -> None:
        self.budget = budget
        self._trust = trust
        self._staging = staging
        self._threads = threads
        self._tracks = tracks
        self._unload = unload
        self._unsealing = unsealing
        self._clock = clock
        self._measured: dict[str, int] = {}
        self._one = asyncio.Lock()

    async def load(
        self, track: Track, version: ModelVersion, lease: Lease, new_meter: Callable[[], Meter], *, again: bool
    ) -> Session | None:
        """Load `version` on the devices of `lease` and switch `track` to it; the session that served before, still to
        be unloaded.

        `again` reloads what was unloaded for room: nothing happens if something serves when its turn has come.
        Raises `Rejected` for what must not or can't be served, another `LlmosError` for what may work later.
        """
        device = devices.device(lease, os.environ.get("CUDA_VISIBLE_DEVICES"))
        await self._trust.check(version)

        async def unsealing(sealed_by: str) -> Cipher:
            return await self._unsealing(sealed_by, track.deployment)

        async with self._staging.staged(version.artifact, unsealing) as root:
            files = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
            async with self._one:
                if again and track.session is not None:
                    return None
                await self._make_room(track, self._measured.get(version.artifact, PREPACKED * files))
                before = memory.resident()
                try:
                    engine = await self._open(root, device, lease)
                except OutOfMemory:
                    if not await self.relieve(track.session):
                        raise
                    engine = await self._open(root, device, lease)
                cost = self._measured[version.artifact] = max(memory.resident() - before, files) + engine.reserved
                session = Session(engine, version, cost, new_meter(), self._clock.monotonic())
                track.lease = lease
                return track.switch(session)

    async def relieve(self, session: Session | None) -> bool:
        """Memory ran out: unload the least recently used session but this one, of those that nobody uses; whether there
        was one. One in use may be waiting for the same.
        """
        loose = [
            (other.used_at, track)
            for track in self._tracks()
            if (other := track.session) is not None and other is not session and not other.active and not track.pinned
        ]
        if not loose:
            await asyncio.to_thread(memory.give_back)
            return False
        await self._unload(min(loose, key=itemgetter(0))[1], "memory: the system has none left")
        return True

    async def _open(self, root: Path, device: str, lease: Lease) -> Engine:
        means = Means(self._threads, device, memory=self._left(), gpu_memory=lease.memory)
        return await asyncio.to_thread(load, root, means)

    def _left(self) -> int:
        """Bytes of the budget that no session takes."""
        return max(1, self.budget - sum(_cost(track) for track in self._tracks())) if self.budget > 0 else 0

    async def _make_room(self, track: Track, need: int) -> None:
        if self.budget <= 0:
            return
        own = [track] if track.session else []
        others = [other for other in self._tracks() if other.session and other is not track]
        # What serves on this track stays up while its successor loads, unless both don't fit.
        unload = make_room(map(_resident, others), need, max(self.budget - sum(map(_cost, own)), 1))
        if unload is None:
            unload = make_room(map(_resident, [*own, *others]), need, self.budget)
        if unload is None:
            pinned = sum(_cost(other) for other in others if other.pinned)
            raise Rejected(
                f"the model needs {need} bytes and the budget of all models is {self.budget}"
                + (f", of which pinned ones take {pinned}" if pinned else ""),
                remedy="Set LLMOS_MEMORY to more, or deploy it on another node.",
                code="no_memory",
            )
        for other in [*own, *others]:
            if other.name in unload:
                await self._unload(other, "memory: another model needs the room")


def _cost(track: Track) -> int:
    return track.session.memory if track.session else 0


def _resident(track: Track) -> Resident:
    assert track.session is not None
    return Resident(track.name, track.session.memory, track.session.used_at, track.pinned)
