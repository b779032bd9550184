"""The exporter's shell: takes WORK of kind `export`, has it done, and says how it ended."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from llmos.bus import Delivery
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.models import ModelExported, ModelRefused, ModelVersion
from llmos.contracts.tasks import (
    TaskAssigned,
    TaskCancelled,
    TaskFailed,
    TaskProgressed,
    TaskRefused,
    TaskStarted,
    TaskStopRequested,
    TaskSucceeded,
)
from llmos.errors import Busy, LlmosError, Problem, Rejected
from llmos.forking import Template
from llmos.service import Context
from llmos_exporter.config import ExporterConfig
from llmos_exporter.core import Pace, fraction, model_name
from llmos_exporter.exporting import ENVIRONMENT, PRELOAD
from llmos_exporter.making import Made, Maker
from llmos_exporter.orders import Progressed
from llmos_exporter.registry import Registry

KIND = "export"
TICK_S = 0.1
GIVE_BACK_S = 2.0
STOPS_KEPT = 1024

T = TypeVar("T")
Facts = list[tuple[str, Struct]]  # the id and the fact


class Stopped(Exception):
    """No error: the task was told to stop."""


async def serve(ctx: Context[ExporterConfig]) -> None:
    """Run the exporter until `ctx.stopping`; what is under way then is given back to the queue."""
    template = Template(PRELOAD, env=ENVIRONMENT)
    exporter = Exporter(ctx, template)
    stopping = asyncio.ensure_future(ctx.stopping.wait())
    running: list[asyncio.Future[Any]] = []
    try:
        await template.start()
        running = [asyncio.ensure_future(part) for part in (exporter.hear_stops(), exporter.take_work())]
        ctx.announce(kinds=[KIND])
        done, _ = await asyncio.wait({stopping, *running}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancel(stopping, *running)
        await exporter.give_back()
        await template.stop()


class Exporter:
    """The exports of one node."""

    def __init__(self, ctx: Context[ExporterConfig], template: Template) -> None:
        self._ctx = ctx
        self._bus = ctx.bus
        self._maker = Maker(ctx, template)
        self._registry = Registry(ctx.bus, ctx.principal, ctx.log)
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops: dict[tuple[str, int], asyncio.Event] = {}  # of running tasks, by task and lease
        self._heard: deque[tuple[str, int]] = deque(maxlen=STOPS_KEPT)  # a stop may come before its task

    async def take_work(self) -> None:
        """Start an export for every assignment, as many at once as the configuration allows."""
        consumer, filter = subjects.work_consumer(KIND, self._ctx.node)
        limit = self._ctx.config.exports_at_once
        work = self._bus.work("WORK", consumer, filter, TaskAssigned, slots=lambda: limit - len(self._tasks))
        async for delivery in work:
            task = asyncio.create_task(self.on_task_assigned(delivery))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def hear_stops(self) -> None:
        """Heed stop requests, also those from before this process began."""
        async for heard in self._bus.follow("CONTROL", ["llmos.ctl.stop.*"]):
            with suppress(msgspec.DecodeError):  # what is no stop request stops nothing
                self.on_task_stop_requested(msgspec.json.decode(heard.data, type=TaskStopRequested))

    def on_task_stop_requested(self, request: TaskStopRequested) -> None:
        """Stop a running task, or one that is yet to come; another lease of the task goes on."""
        key = (request.task, request.lease)
        self._heard.append(key)
        if key in self._stops:
            self._stops[key].set()

    async def give_back(self) -> None:
        """End what runs and return it to the queue."""
        await cancel(*self._tasks)

    async def on_task_assigned(self, delivery: Delivery[TaskAssigned]) -> None:
        """Do an assignment and say how it ended; acked when that is persisted, else given back."""
        assigned = delivery.body
        key = (assigned.task, assigned.lease)
        log = self._ctx.log.bind(task=assigned.task, lease=assigned.lease)
        if key in self._stops:  # a second delivery of what is under way: the first one is kept alive, and acked
            return
        stop = self._stops[key] = asyncio.Event()
        if key in self._heard:
            stop.set()
        try:
            async with delivery.kept_alive():
                parent, cause = delivery.envelope.traceparent, delivery.envelope.id
                with self._ctx.telemetry.span("export", parent=parent, kind="consumer", task=assigned.task) as span:
                    started = self._fact(TaskStarted, assigned)
                    await self._bus.emit(started, id=f"{_lease(assigned)}.started.{delivery.deliveries}", cause=cause)
                    for id, fact in await self._outcome(assigned, stop, cause):
                        await self._bus.emit(fact, id=id, cause=cause)
                        span.set_attribute("llmos.outcome", type(fact).__name__)
                        log.info(type(fact).__name__)
            await delivery.ack()
        except LlmosError as error:  # a fact may not be stored: everything again, under the same ids
            log.warning("given back", error=str(error))
            await delivery.nak(GIVE_BACK_S)
        except asyncio.CancelledError:
            await delivery.nak()
            raise
        finally:
            del self._stops[key]

    async def _outcome(self, assigned: TaskAssigned, stop: asyncio.Event, cause: str) -> Facts:
        """Do it; the final facts, with ids that depend only on the lease. An error becomes `TaskFailed`."""
        try:
            spec = assigned.spec
            known = await self._registry.find(model_name(spec), assigned.tenant, assigned.job)
            if known is None:
                async with self._telling(assigned, cause) as tell:
                    made = await _unless(stop, self._maker.make(assigned, tell))
                    if made.reasons:
                        return self._refused(assigned, made)
                    known = await self._registry.register(made.version)
            return self._exported(assigned, known)
        except Stopped:
            return self._cancelled(assigned)
        except LlmosError as error:
            problem, retryable = error.problem, not isinstance(error, Rejected)
            if retryable and stop.is_set():  # the vault was away, say; nobody wants the next attempt
                return self._cancelled(assigned)
        except Exception as error:  # a fault of ours fails this attempt, and stops no other export
            self._ctx.log.exception("an export failed", task=assigned.task)
            problem, retryable = Problem("error", f"{type(error).__name__}: {error}", "See the exporter's log."), True
        failed = self._fact(TaskFailed, assigned, problem=problem, retryable=retryable)
        return [(f"{_lease(assigned)}.failed", failed)]

    def _cancelled(self, assigned: TaskAssigned) -> Facts:
        return [(f"{_lease(assigned)}.cancelled", self._fact(TaskCancelled, assigned))]

    def _exported(self, assigned: TaskAssigned, version: ModelVersion) -> Facts:
        metrics = version.metrics | version.parity
        succeeded = self._fact(TaskSucceeded, assigned, outputs={"model": version.artifact}, metrics=metrics)
        # The version's fact is the job's, whichever of its leases says it.
        return [
            (f"{assigned.job}.exported", ModelExported(version)),
            (f"{_lease(assigned)}.succeeded", succeeded),
        ]

    def _refused(self, assigned: TaskAssigned, made: Made) -> Facts:
        version = made.version
        refused = ModelRefused(
            model=version.model,
            job=assigned.job,
            tenant=assigned.tenant,
            reasons=made.reasons,
            source=version.source,
            metrics=version.metrics,
            parity=version.parity,
        )
        task = self._fact(TaskRefused, assigned, reasons=made.reasons, metrics=version.metrics | version.parity)
        return [(f"{_lease(assigned)}.model-refused", refused), (f"{_lease(assigned)}.refused", task)]

    @asynccontextmanager
    async def _telling(self, assigned: TaskAssigned, cause: str) -> AsyncIterator[Callable[[Progressed], None]]:
        """Take progress while the block runs, and say it at its pace."""
        pace = Pace()

        async def say() -> None:
            while True:
                if progress := pace.due(self._ctx.clock.monotonic()):
                    with suppress(Busy):  # the next one tells as much
                        await self._bus.emit(progress, cause=cause)
                await asyncio.sleep(TICK_S)

        def hear(progress: Progressed) -> None:
            share = fraction(progress.phase, progress.share)
            pace.hear(self._fact(TaskProgressed, assigned, phase=progress.phase, fraction=share))

        saying = asyncio.create_task(say())
        try:
            yield hear
        finally:
            await cancel(saying)

    def _fact(self, kind: type[T], assigned: TaskAssigned, **rest: Any) -> T:
        """A fact of a task, with the fields that all of them have."""
        fields = {name: getattr(assigned, name) for name in ("task", "job", "tenant", "kind", "lease")}
        known = {field.name for field in msgspec.structs.fields(kind)}  # type: ignore[arg-type]
        common = {name: value for name, value in fields.items() if name in known}
        make: Callable[..., T] = kind
        return make(**common, node=self._ctx.node, **rest)


def _lease(assigned: TaskAssigned) -> str:
    return f"{assigned.task}.{assigned.lease}"


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work, or `Stopped`, with the work ended, as soon as `stop` is set."""
    working = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if stop.is_set():
            raise Stopped
        return working.result()
    finally:
        await cancel(working, stopping)
