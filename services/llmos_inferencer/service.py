"""The shell: hears what this node should serve, performs what `core.converge` decides, drains when it is told to
stop.
"""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from llmos.artifacts import Cipher
from llmos.bus import Heard
from llmos.contracts import subjects
from llmos.contracts.deployments import ReplicaAssigned, ReplicaFailed, ReplicaReady, ReplicaUnloaded
from llmos.contracts.models import ModelVersion
from llmos.errors import Busy, LlmosError, Problem, Rejected
from llmos.ids import new_id
from llmos.service import Context
from llmos.signing import read_trusted
from llmos_inferencer import core, memory, state
from llmos_inferencer.config import InferencerConfig, size
from llmos_inferencer.lanes import Lanes
from llmos_inferencer.loading import Loader
from llmos_inferencer.meter import Meter
from llmos_inferencer.serving import Serving, Session
from llmos_inferencer.staging import Staging
from llmos_inferencer.trust import Trust

METER_S = 30.0


async def serve(ctx: Context[InferencerConfig]) -> None:
    """Run an inferencer until `ctx.stopping` is set."""
    await Inferencer(ctx).run()


class Inferencer:
    """The deployments of this node."""

    def __init__(self, ctx: Context[InferencerConfig]) -> None:
        config = ctx.config
        self._ctx = ctx
        self._desired: state.Desired = {}
        self._actual: state.Actual = {}
        self._servings: dict[str, Serving] = {}
        self._reloads: dict[str, asyncio.Task[None]] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()
        self._lanes = Lanes(config.cores(), ctx.clock, observe=self._observe)
        trusted = Path(config.trusted_keys).expanduser() if config.trusted_keys else None
        if trusted is not None:
            read_trusted(trusted)  # a trust file that can't be read stops the process at once
        self._staging = Staging(
            ctx.store, config.state_dir() / "models", budget=size(config.model_cache, "model_cache"), log=ctx.log
        )
        self._loader = Loader(
            Trust(ctx.bus, file=trusted, pinned=config.state_dir() / "trusted_keys.json", log=ctx.log),
            self._staging,
            budget=config.memory_budget(),
            threads=self._lanes.threads,
            servings=self._servings.values,
            unload=self._unload,
            unsealing=self._unsealing,
            clock=ctx.clock,
        )

    async def run(self) -> None:
        """Converge until told to stop, then drain."""
        self._ctx.announce(kinds=["serve"], memory=self._loader.budget, used=self._used)
        loops = [self._spawn(loop()) for loop in (self._follow, self._converge, self._meter)]
        stopping = asyncio.create_task(self._ctx.stopping.wait())
        try:
            ends: list[asyncio.Future[Any]] = [stopping, self._broken]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                self._broken.result()
        finally:
            stopping.cancel()
            for task in loops:
                task.cancel()
            await self._drain()

    # --- hearing ---

    async def _follow(self) -> None:
        pattern = subjects.deploy(self._ctx.node, "x").removesuffix("x") + "*"
        async for heard in self._ctx.bus.follow("DEPLOY", [pattern], last_per_subject=True):
            self.on_replica_assigned(heard)

    def on_replica_assigned(self, heard: Heard) -> None:
        """An assignment for this node, at start or now."""
        try:
            assigned = msgspec.json.decode(heard.data, type=ReplicaAssigned)
        except msgspec.DecodeError as error:
            self._ctx.log.error("an assignment can't be read", subject=heard.subject, error=str(error))
            return
        if assigned.deployment != heard.subject.rsplit(".", 1)[-1]:
            self._ctx.log.error("an assignment is for another subject", subject=heard.subject, body=assigned.deployment)
            return
        self._desired = state.heard(self._desired, assigned)
        self._changed.set()

    # --- converging ---

    async def _converge(self) -> None:
        while True:
            self._changed.clear()
            now = self._ctx.clock.monotonic()
            for effect in core.converge(self._desired, self._actual, now):
                self._actual = state.began(self._actual, effect.assigned)
                self._spawn(self._perform(effect))
            retry = core.next_retry(self._actual)
            try:
                async with asyncio.timeout(max(0.0, retry - now) if retry is not None else None):
                    await self._changed.wait()
            except TimeoutError:
                pass  # a failed replica's turn has come

    async def _perform(self, effect: core.Effect) -> None:
        assigned = effect.assigned
        match effect:
            case core.Bring():
                await self._bring(assigned)
            case core.Confirm():
                serving = self._servings[assigned.deployment]
                self._actual = state.came_up(self._actual, assigned)
                await self._say_ready(assigned, 0.0, serving.session.memory if serving.session else 0)
            case core.TakeDown():
                await self._take_down(assigned)
        self._changed.set()

    async def _bring(self, assigned: ReplicaAssigned) -> None:
        version = assigned.version
        assert version is not None  # `converge` takes an assignment without a version down
        started = self._ctx.clock.monotonic()
        serving = self._serving(assigned)
        try:
            old = await self._load(serving, version)
        except LlmosError as error:
            await self._on_failure(assigned, error.problem, retryable=not isinstance(error, Rejected))
            return
        except Exception as error:  # the history must hear of it; what it was is not known, so it is tried again
            self._ctx.log.exception("a replica could not be brought up", deployment=assigned.deployment)
            await self._on_failure(assigned, Problem("error", f"{type(error).__name__}: {error}"), retryable=True)
            return
        self._actual = state.came_up(self._actual, assigned)
        took = self._ctx.clock.monotonic() - started
        await self._say_ready(assigned, took, serving.session.memory if serving.session else 0)
        if old is not None:
            await self._retire(serving, old, assigned.generation, f"replaced by version {version.version}")
        await self._staging.prune(self._wanted())

    async def _on_failure(self, assigned: ReplicaAssigned, problem: Problem, *, retryable: bool) -> None:
        serving = self._servings[assigned.deployment]
        if serving.session is None:
            await serving.stop()  # what was held goes back to the queue, for another node or a later try
        now = self._ctx.clock.monotonic()
        self._actual = state.failed(self._actual, assigned, retryable=retryable, now=now)
        self._ctx.log.error("replica failed", deployment=assigned.deployment, problem=problem.message)
        await self._say(
            ReplicaFailed(
                deployment=assigned.deployment,
                tenant=assigned.tenant,
                node=self._ctx.node,
                generation=assigned.generation,
                problem=problem,
                job=assigned.job,
                retryable=retryable,
            )
        )

    async def _take_down(self, assigned: ReplicaAssigned) -> None:
        serving = self._servings.pop(assigned.deployment, None)
        if serving is not None:
            await serving.stop()
            if serving.deployment in self._reloads:
                await asyncio.wait([self._reloads[serving.deployment]])
                await serving.stop()
            session = serving.detach()
            if session is not None:
                await self._retire(serving, session, assigned.generation, "taken down")
        self._actual = state.gone(self._actual, assigned.deployment)

    # --- sessions ---

    async def _load(self, serving: Serving, version: ModelVersion) -> Session | None:
        old = await self._loader.load(serving, version, lambda: self._new_meter(serving, version))
        serving.start()
        return old

    def _demand(self, deployment: str) -> None:
        """A request came for a deployment whose session was unloaded for room: load it again."""
        replica = self._actual.get(deployment)
        if replica is not None and replica.version is not None and deployment not in self._reloads:
            self._reloads[deployment] = self._spawn(self._reload(deployment, replica.version))

    async def _reload(self, deployment: str, version: ModelVersion) -> None:
        serving, assigned = self._servings[deployment], self._desired[deployment]
        started = self._ctx.clock.monotonic()
        try:
            old = await self._load(serving, version)
        except Exception as error:  # noqa: BLE001 - whatever it was, a reload that fails is a replica that failed
            problem = error.problem if isinstance(error, LlmosError) else Problem("error", str(error))
            if self._servings.get(deployment) is serving:
                await self._on_failure(assigned, problem, retryable=True)
                self._changed.set()
            return
        finally:
            del self._reloads[deployment]
        if old is not None:
            await self._retire(serving, old, assigned.generation, "loaded twice")
        if self._servings.get(deployment) is not serving:
            return
        took = self._ctx.clock.monotonic() - started
        await self._say_ready(assigned, took, serving.session.memory if serving.session else 0)

    async def _unload(self, serving: Serving, reason: str) -> None:
        session = serving.detach()
        if session is not None:
            await self._retire(serving, session, self._desired[serving.deployment].generation, reason)

    async def _retire(self, serving: Serving, session: Session, generation: int, reason: str) -> None:
        """Wait until nobody uses the session, then free it."""
        await session.idle.wait()
        await self._say_metered(session)
        version = session.version.version
        del session.engine
        await asyncio.to_thread(memory.give_back)
        await self._say(
            ReplicaUnloaded(
                deployment=serving.deployment,
                tenant=serving.tenant,
                node=self._ctx.node,
                generation=generation,
                version=version,
                reason=reason,
            )
        )

    async def _unsealing(self, sealed_by: str, deployment: str) -> Cipher:
        from llmos.keyring import KeyRing  # brings tink along, which only a private model needs

        return await KeyRing(self._ctx.bus, self._ctx.principal).decrypting(sealed_by, deployment)

    # --- saying ---

    async def _meter(self) -> None:
        while True:
            await asyncio.sleep(METER_S)
            for serving in list(self._servings.values()):
                if serving.session is not None:
                    await self._say_metered(serving.session)

    async def _say_metered(self, session: Session) -> None:
        metered = session.meter.close_period(self._ctx.clock.now())
        if metered is not None:
            await self._say(metered)

    async def _say_ready(self, assigned: ReplicaAssigned, load_s: float, used: int) -> None:
        version = self._actual[assigned.deployment].version
        assert version is not None  # it came up
        self._ctx.log.info("replica ready", deployment=assigned.deployment, version=version.version, seconds=load_s)
        await self._say(
            ReplicaReady(
                deployment=assigned.deployment,
                tenant=assigned.tenant,
                node=self._ctx.node,
                generation=assigned.generation,
                model=version.model,
                version=version.version,
                job=assigned.job,
                load_s=round(load_s, 3),
                memory=used,
            )
        )

    async def _say(self, event: Struct) -> None:
        """State a fact, however long the bus is away; one id, so it is stored once."""
        id = new_id()
        while True:
            try:
                await self._ctx.bus.emit(event, id=id)
                return
            except Busy as error:
                self._ctx.log.warning("a fact waits for the bus", fact=type(event).__name__, error=str(error))
                if self._ctx.stopping.is_set():
                    return

    # --- inside ---

    async def _drain(self) -> None:
        await asyncio.gather(*(serving.stop() for serving in self._servings.values()))
        for serving in self._servings.values():
            if serving.session is not None:
                await self._say_metered(serving.session)
        left = list(self._work)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        self._lanes.close()

    def _serving(self, assigned: ReplicaAssigned) -> Serving:
        name = assigned.deployment
        if name not in self._servings:
            self._servings[name] = Serving(
                self._ctx,
                name,
                assigned.tenant,
                self._lanes,
                demand=lambda: self._demand(name),
                spawn=self._spawn,
            )
        return self._servings[name]

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run something beside; what it raises ends the process."""
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self._broken.done():
            self._broken.set_exception(error)

    def _new_meter(self, serving: Serving, version: ModelVersion) -> Meter:
        return Meter(serving.deployment, serving.tenant, self._ctx.node, version, self._ctx.clock.now())

    def _used(self) -> int:
        return sum(serving.session.memory for serving in self._servings.values() if serving.session)

    def _wanted(self) -> list[str]:
        return [wanted.version.artifact for wanted in self._desired.values() if wanted.version is not None]

    def _observe(self, deployment: str, inputs: int, seconds: float) -> None:
        self._ctx.telemetry.record("llmos.inference.duration", seconds, model=deployment)
        self._ctx.telemetry.record("llmos.inference.batch_size", inputs, model=deployment)
