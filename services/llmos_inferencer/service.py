"""The shell: hears what this node should serve, performs what `core.converge` decides, drains when it is told to
stop.
"""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec

from llmos.bus import Heard
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.deployments import ReplicaAssigned
from llmos.errors import LlmosError, Problem, Rejected
from llmos.service import Context
from llmos_inferencer import core, state
from llmos_inferencer.config import InferencerConfig
from llmos_inferencer.lanes import Lanes
from llmos_inferencer.replicas import Replicas
from llmos_inferencer.reporting import Reporter
from llmos_inferencer.serving import Serving
from llmos_inferencer.sessions import Track
from llmos_inferencer.trust import Trust

METER_S = 30.0
IDLE_LOOK_S = 1.0


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
        self._work: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._changed = asyncio.Event()
        self._lanes = Lanes(config.cores(), ctx.clock, observe=self._observe)
        trusted = Path(config.trusted_keys).expanduser() if config.trusted_keys else None
        trust = Trust(ctx.bus, file=trusted, pinned=config.state_dir() / "trusted_keys.json", log=ctx.log)
        self._replicas = Replicas(ctx, self._lanes, trust, self._say, self._spawn, lost=self._on_lost)

    async def run(self) -> None:
        """Converge until told to stop, then drain."""
        self._ctx.announce(kinds=["serve"], memory=self._replicas.budget, used=self._replicas.used)
        for loop in (self._follow, self._follow_askers, self._converge, self._meter, self._unload_idle):
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

    async def _follow_askers(self) -> None:
        patterns = ["llmos.ctl.cancel.*", "llmos.ctl.keep.*"]
        async for heard in self._ctx.bus.follow("CONTROL", patterns, start=0):
            _, _, verb, id = heard.subject.split(".")
            if verb == "keep":
                self._replicas.askers.see(id, self._ctx.clock.monotonic())
                continue
            self._replicas.askers.recall(id)
            for serving in self._replicas.servings.values():
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
                    await self._up(assigned, self._replicas.configure(assigned), 0.0)
                case core.TakeDown():
                    version = await self._replicas.take_down(name)
                    self._actual = state.taken_down(self._actual, assigned)
                    await self._say.unloaded(assigned, version, "taken down")
        self._changed.set()

    async def _bring(self, assigned: ReplicaAssigned) -> None:
        started = self._ctx.clock.monotonic()
        try:
            replaced = await self._replicas.bring(assigned)
        except LlmosError as error:
            await self._on_failure(assigned, error.problem, retryable=not isinstance(error, Rejected))
            return
        except Exception as error:  # the history must hear of it; what it was is not known, so it is tried again
            self._ctx.log.exception("a replica could not be brought up", deployment=assigned.deployment)
            await self._on_failure(assigned, _problem(error), retryable=True)
            return
        serving = self._replicas.servings[assigned.deployment]
        await self._up(assigned, serving, self._ctx.clock.monotonic() - started)
        for session, reason in replaced:
            await self._replicas.retire(session, assigned, reason)
        await self._replicas.prune(self._wanted())

    async def _up(self, assigned: ReplicaAssigned, serving: Serving, seconds: float) -> None:
        assert assigned.version is not None  # it came up
        self._actual = state.came_up(self._actual, assigned)
        used = sum(track.session.memory for track in (serving.main, serving.canary) if track.session)
        await self._say.ready(assigned, assigned.version, seconds, used)

    async def _on_failure(self, assigned: ReplicaAssigned, problem: Problem, *, retryable: bool) -> None:
        serving = self._replicas.servings[assigned.deployment]
        if serving.main.session is None:
            await serving.stop()  # what was held goes back to the queue, for another node or a later try
        self._actual = state.failed(
            self._actual,
            assigned,
            retryable=retryable,
            now=self._ctx.clock.monotonic(),
            version=serving.main.version,
            canary=serving.canary.version,
        )
        if serving.main.session is None:
            self._replicas.demand(serving.main)  # what served before made room in vain
        failures = self._actual[assigned.deployment].failures
        await self._say.failed(assigned, problem, retryable=retryable, failures=failures)

    async def _on_lost(self, serving: Serving, track: Track, error: Exception) -> None:
        if track is serving.canary:
            serving.weight = 0
            track.hand_over(serving.main)
        await self._on_failure(self._desired[serving.deployment], _problem(error), retryable=True)
        self._changed.set()

    # --- inside ---

    async def _meter(self) -> None:
        while True:
            await asyncio.sleep(METER_S)
            await self._replicas.close_periods()

    async def _unload_idle(self) -> None:
        while True:
            await asyncio.sleep(IDLE_LOOK_S)
            await self._replicas.unload_idle()

    async def _drain(self) -> None:
        await cancel(*self._work)  # whoever pulls, brings up or loads
        await asyncio.gather(*(serving.stop() for serving in self._replicas.servings.values()))
        await self._replicas.close_periods()
        self._lanes.close()

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

    def _wanted(self) -> list[str]:
        versions = [version for wanted in self._desired.values() for version in (wanted.version, wanted.canary)]
        return [version.artifact for version in versions if version is not None]

    def _observe(self, deployment: str, inputs: int, seconds: float) -> None:
        self._ctx.telemetry.record("llmos.inference.duration", seconds, model=deployment)
        self._ctx.telemetry.record("llmos.inference.batch_size", inputs, model=deployment)


def _problem(error: Exception) -> Problem:
    return error.problem if isinstance(error, LlmosError) else Problem("error", f"{type(error).__name__}: {error}")
