"""The deployments of this process: sessions come and go here, and no request is lost or answered by half of one."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

from llmos.artifacts import Cipher
from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.models import ModelVersion
from llmos.service import Context
from llmos.sizes import parse_setting
from llmos_inferencer import memory
from llmos_inferencer.askers import Askers
from llmos_inferencer.config import InferencerConfig
from llmos_inferencer.lanes import Lanes
from llmos_inferencer.loading import Loader
from llmos_inferencer.meter import Meter
from llmos_inferencer.reporting import Reporter
from llmos_inferencer.serving import Serving
from llmos_inferencer.sessions import Session, Track
from llmos_inferencer.staging import Staging
from llmos_inferencer.state import Lease, lease_of
from llmos_inferencer.trust import Trust

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Replicas:
    """What is served under which name. `lost(serving, track, error)` is told when a session can't be loaded again."""

    def __init__(
        self,
        ctx: Context[InferencerConfig],
        lanes: Lanes,
        trust: Trust,
        say: Reporter,
        spawn: Spawn,
        *,
        lost: Callable[[Serving, Track, Exception], Awaitable[None]],
    ) -> None:
        self.servings: dict[str, Serving] = {}
        self.askers = Askers()
        self._ctx = ctx
        self._lanes = lanes
        self._say = say
        self._spawn = spawn
        self._lost = lost
        self._assigned: dict[str, ReplicaAssigned] = {}
        self._reloads: dict[str, asyncio.Task[None]] = {}
        self._staging = Staging(
            ctx.store,
            ctx.config.state_dir() / "models",
            budget=parse_setting(ctx.config.model_cache, "model_cache"),
            log=ctx.log,
        )
        self._loader = Loader(
            trust,
            self._staging,
            budget=ctx.config.memory_budget(),
            threads=lanes.threads,
            tracks=self.tracks,
            unload=self.unload,
            unsealing=self._unsealing,
            clock=ctx.clock,
        )

    @property
    def budget(self) -> int:
        """What all sessions may take, in bytes."""
        return self._loader.budget

    def tracks(self) -> Iterator[Track]:
        """Every way through every deployment."""
        for serving in list(self.servings.values()):
            yield from (serving.main, serving.canary)

    def used(self) -> int:
        """What all sessions take, in bytes."""
        return sum(track.session.memory for track in self.tracks() if track.session)

    async def bring(self, assigned: ReplicaAssigned) -> list[tuple[Session, str]]:
        """Serve what is assigned; the sessions that it replaced, still to be retired, and why.

        What serves already is not loaded again: a canary that becomes the version is switched over. Raises what keeps
        the version or its canary from being loaded; what served before goes on.
        """
        version = assigned.version
        assert version is not None  # `converge` takes an assignment without a version down
        serving = self._serving(assigned)
        main, canary, lease = serving.main, serving.canary, lease_of(assigned)
        replaced: list[tuple[Session | None, str]] = []
        reason = f"replaced by version {version.version}"
        if version == canary.version and canary.session is not None and lease == canary.lease:
            serving.weight, session = 0, canary.detach()
            assert session is not None  # seen a line above, and nothing was awaited
            canary.version = None
            main.lease = lease
            replaced.append((main.switch(session), reason))
        elif version != main.version or lease != main.lease:
            reason = reason if version != main.version else "moved to other devices"
            replaced.append((await self._load(serving, main, version, lease), reason))
        if assigned.canary is None:
            serving.weight, session, canary.version = 0, canary.detach(), None
            canary.hand_over(main)
            replaced.append((session, "the canary was taken back"))
        elif assigned.canary != canary.version or lease != canary.lease:
            serving.weight = 0
            old = await self._load(serving, canary, assigned.canary, lease)
            replaced.append((old, f"replaced by version {assigned.canary.version}"))
        self.configure(assigned)
        return [(session, why) for session, why in replaced if session is not None]

    def configure(self, assigned: ReplicaAssigned) -> Serving:
        """Take over what can change without loading anything."""
        serving = self._serving(assigned)
        self._assigned[assigned.deployment] = assigned
        serving.weight = assigned.weight if assigned.canary is not None else 0
        for track in (serving.main, serving.canary):
            track.pinned, track.idle = assigned.pinned, assigned.idle
        return serving

    async def take_down(self, deployment: str) -> int:
        """Stop serving a deployment and free it; the version that served, 0 if none did."""
        serving = self.servings.pop(deployment, None)
        if serving is None:
            return 0
        await serving.stop()
        for track in (serving.main, serving.canary):
            if track.name in self._reloads:
                await asyncio.wait([self._reloads[track.name]])
                await serving.stop()
        sessions = [session for track in (serving.main, serving.canary) if (session := track.detach()) is not None]
        for session in sessions:
            await self._free(session)
        return sessions[0].version.version if sessions else 0

    def demand(self, track: Track) -> None:
        """A request came to a track whose session was unloaded: load it again."""
        if track.version is not None and track.name not in self._reloads:
            self._reloads[track.name] = self._spawn(self._reload(track, track.version))

    async def unload(self, track: Track, reason: str) -> None:
        """Take a session out, wait until nobody uses it and free it."""
        session = track.detach()
        if session is not None:
            await self.retire(session, self._assigned[track.deployment], reason)

    async def unload_idle(self) -> None:
        """Scale to zero what nobody has asked for long enough."""
        now = self._ctx.clock.monotonic()
        for track in self.tracks():
            if track.is_idle(now):
                await self.unload(track, "idle")

    async def retire(self, session: Session, assigned: ReplicaAssigned, reason: str) -> None:
        """Free a session that was taken out, and say so."""
        await self._free(session)
        await self._say.unloaded(assigned, session.version.version, reason)

    async def close_periods(self) -> None:
        """State what was served since the last time."""
        for track in self.tracks():
            if track.session is not None:
                await self._say.metered(track.session.meter.close_period(self._ctx.clock.now()))

    async def prune(self, wanted: list[str]) -> None:
        """Remove staged artifacts that are too much, none of `wanted`."""
        await self._staging.prune(wanted)

    # --- inside ---

    async def _load(
        self, serving: Serving, track: Track, version: ModelVersion, lease: Lease, *, again: bool = False
    ) -> Session | None:
        def new_meter() -> Meter:
            return Meter(serving.deployment, serving.tenant, self._ctx.node, version, self._ctx.clock.now())

        old = await self._loader.load(track, version, lease, new_meter, again=again)
        serving.start()
        return old

    async def _reload(self, track: Track, version: ModelVersion) -> None:
        serving, assigned = self.servings[track.deployment], self._assigned[track.deployment]
        started = self._ctx.clock.monotonic()
        try:
            await self._load(serving, track, version, track.lease, again=True)
        except Exception as error:  # noqa: BLE001 - whatever it was, a reload that fails is a replica that failed
            if self.servings.get(track.deployment) is serving and track.version is version:
                track.version = None
                await self._lost(serving, track, error)
            return
        finally:
            del self._reloads[track.name]
        session = track.session
        if session is not None and session.version is version and self.servings.get(track.deployment) is serving:
            await self._say.ready(assigned, version, self._ctx.clock.monotonic() - started, session.memory)

    async def _free(self, session: Session) -> None:
        """Wait until nobody uses the session, then give its memory back."""
        await session.idle.wait()
        await self._say.metered(session.meter.close_period(self._ctx.clock.now()))
        session.engine.close()
        del session.engine
        await asyncio.to_thread(memory.give_back)

    async def _unsealing(self, sealed_by: str, deployment: str) -> Cipher:
        from llmos.keyring import KeyRing  # brings tink along, which only a private model needs

        return await KeyRing(self._ctx.bus, self._ctx.principal).decrypting(sealed_by, deployment)

    def _serving(self, assigned: ReplicaAssigned) -> Serving:
        name = assigned.deployment
        self._assigned[name] = assigned
        if name not in self.servings:
            self.servings[name] = Serving(
                self._ctx,
                name,
                assigned.tenant,
                self._lanes,
                self.askers,
                demand=self.demand,
                relieve=self._loader.relieve,
                spawn=self._spawn,
            )
        return self.servings[name]
