"""The shell: hears what this node should serve, performs what `core.converge` decides, drains when it is told to
stop.
"""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from llmos.artifacts import Cipher
from llmos.bus import Heard
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.models import ModelVersion
from llmos.errors import LlmosError, Problem, Rejected
from llmos.service import Context
from llmos.sizes import parse_setting
from llmos_inferencer import core, memory, state
from llmos_inferencer.config import InferencerConfig
from llmos_inferencer.lanes import Lanes
from llmos_inferencer.loading import Loader
from llmos_inferencer.meter import Meter
from llmos_inferencer.recall import Recalled
from llmos_inferencer.reporting import Reporter
from llmos_inferencer.serving import Serving
from llmos_inferencer.sessions import Session, Track
from llmos_inferencer.staging import Staging
from llmos_inferencer.trust import Trust

METER_S = 30.0
QUIET_FAILURES = 3  # in a row, 3.5 s with the waits between: a service that restarts is not worth a fact


async def serve(ctx: Context[InferencerConfig]) -> None:
    """Run an inferencer until `ctx.stopping` is set."""
    await Inferencer(ctx).run()


class Inferencer:
    """The deployments of this node."""

    def __init__(self, ctx: Context[InferencerConfig]) -> None:
        config = ctx.config
        self._ctx = ctx
        self._say = Reporter(ctx)
        self._desired: state.Desired = {}
        self._actual: state.Actual = {}
        self._servings: dict[str, Serving] = {}
        self._reloads: dict[str, asyncio.Task[None]] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()
        self._recalled = Recalled()
        self._lanes = Lanes(config.cores(), ctx.clock, observe=self._observe)
        trusted = Path(config.trusted_keys).expanduser() if config.trusted_keys else None
        self._staging = Staging(
            ctx.store,
            config.state_dir() / "models",
            budget=parse_setting(config.model_cache, "model_cache"),
            log=ctx.log,
        )
        self._loader = Loader(
            Trust(ctx.bus, file=trusted, pinned=config.state_dir() / "trusted_keys.json", log=ctx.log),
            self._staging,
            budget=config.memory_budget(),
            threads=self._lanes.threads,
            tracks=lambda: [serving.main for serving in self._servings.values()],
            unload=self._unload,
            unsealing=self._unsealing,
            clock=ctx.clock,
        )

    async def run(self) -> None:
        """Converge until told to stop, then drain."""
        self._ctx.announce(kinds=["serve"], memory=self._loader.budget, used=self._used)
        for loop in (self._follow, self._follow_recalls, self._converge, self._meter):
            self._spawn(loop())
        stopping = asyncio.create_task(self._ctx.stopping.wait())
        try:
            ends: list[asyncio.Future[Any]] = [stopping, self._broken]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                self._broken.result()
        finally:
            await cancel(stopping)
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
        self._say.heard(assigned.deployment, heard.envelope)
        self._desired = state.heard(self._desired, assigned)
        self._actual = state.asked_again(self._actual, assigned)
        self._changed.set()

    async def _follow_recalls(self) -> None:
        pattern = subjects.control_cancel("x").removesuffix("x") + "*"
        async for heard in self._ctx.bus.follow("CONTROL", [pattern], start=0):
            id = heard.subject.rsplit(".", 1)[-1]
            self._recalled.add(id)
            for serving in self._servings.values():
                serving.recall(id)

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
        name, parent = assigned.deployment, self._say.traceparent(assigned.deployment)
        with self._ctx.telemetry.span(f"replica.{type(effect).__name__.lower()}", parent=parent, deployment=name):
            match effect:
                case core.Bring():
                    await self._bring(assigned)
                case core.Confirm():
                    await self._up(assigned, self._servings[name], 0.0)
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
            await self._on_failure(assigned, _problem(error), retryable=True)
            return
        await self._up(assigned, serving, self._ctx.clock.monotonic() - started)
        if old is not None:
            await self._retire(old, assigned, f"replaced by version {version.version}")
        await self._staging.prune(self._wanted())

    async def _up(self, assigned: ReplicaAssigned, serving: Serving, seconds: float) -> None:
        assert assigned.version is not None  # it came up
        self._actual = state.came_up(self._actual, assigned)
        used = serving.main.session.memory if serving.main.session else 0
        await self._say.ready(assigned, assigned.version, seconds, used)

    async def _on_failure(
        self, assigned: ReplicaAssigned, problem: Problem, *, retryable: bool, lost: bool = False
    ) -> None:
        serving = self._servings[assigned.deployment]
        if serving.main.session is None:
            await serving.stop()  # what was held goes back to the queue, for another node or a later try
        now = self._ctx.clock.monotonic()
        self._actual = state.failed(self._actual, assigned, retryable=retryable, now=now, lost=lost)
        if serving.main.session is None:
            self._demand(assigned.deployment)  # what served before made room in vain
        failures = self._actual[assigned.deployment].failures
        await self._say.failed(assigned, problem, retryable=retryable, failures=failures)

    async def _take_down(self, assigned: ReplicaAssigned) -> None:
        serving = self._servings.pop(assigned.deployment, None)
        version = 0
        if serving is not None:
            await serving.stop()
            if serving.deployment in self._reloads:
                await asyncio.wait([self._reloads[serving.deployment]])
                await serving.stop()
            session = serving.main.detach()
            if session is not None:
                version = session.version.version
                await self._free(session)
        self._actual = state.taken_down(self._actual, assigned)
        await self._say.unloaded(assigned, version, "taken down")

    # --- sessions ---

    async def _load(self, serving: Serving, version: ModelVersion, *, again: bool = False) -> Session | None:
        old = await self._loader.load(serving.main, version, lambda: self._new_meter(serving, version), again=again)
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
            await self._load(serving, version, again=True)
        except Exception as error:  # noqa: BLE001 - whatever it was, a reload that fails is a replica that failed
            if self._servings.get(deployment) is serving:
                await self._on_failure(assigned, _problem(error), retryable=True, lost=True)
                self._changed.set()
            return
        finally:
            del self._reloads[deployment]
        session = serving.main.session
        if session is not None and session.version is version and self._servings.get(deployment) is serving:
            await self._say.ready(assigned, version, self._ctx.clock.monotonic() - started, session.memory)

    async def _unload(self, track: Track, reason: str) -> None:
        session = track.detach()
        if session is not None:
            await self._retire(session, self._desired[track.deployment], reason)

    async def _retire(self, session: Session, assigned: ReplicaAssigned, reason: str) -> None:
        await self._free(session)
        await self._say.unloaded(assigned, session.version.version, reason)

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

    # --- inside ---

    async def _meter(self) -> None:
        while True:
            await asyncio.sleep(METER_S)
            await self._close_periods()

    async def _close_periods(self) -> None:
        for serving in list(self._servings.values()):
            if serving.main.session is not None:
                await self._say.metered(serving.main.session.meter.close_period(self._ctx.clock.now()))

    async def _drain(self) -> None:
        await cancel(*self._work)  # whoever pulls, brings up or loads
        await asyncio.gather(*(serving.stop() for serving in self._servings.values()))
        await self._close_periods()
        self._lanes.close()

    def _serving(self, assigned: ReplicaAssigned) -> Serving:
        name = assigned.deployment
        if name not in self._servings:
            self._servings[name] = Serving(
                self._ctx,
                name,
                assigned.tenant,
                self._lanes,
                self._recalled,
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
        return sum(serving.main.session.memory for serving in self._servings.values() if serving.main.session)

    def _wanted(self) -> list[str]:
        return [wanted.version.artifact for wanted in self._desired.values() if wanted.version is not None]

    def _observe(self, deployment: str, inputs: int, seconds: float) -> None:
        self._ctx.telemetry.record("llmos.inference.duration", seconds, model=deployment)
        self._ctx.telemetry.record("llmos.inference.batch_size", inputs, model=deployment)


def _problem(error: Exception) -> Problem:
    return error.problem if isinstance(error, LlmosError) else Problem("error", f"{type(error).__name__}: {error}")
