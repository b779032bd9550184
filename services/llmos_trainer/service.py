"""The trainer's shell: takes `check` and `train` assignments of its node, runs them, hears stop requests, drains."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable

import msgspec

from llmos.bus import Delivery
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.tasks import Kind, TaskAssigned, TaskStopRequested
from llmos.forking import Template
from llmos.keyring import KeyRing
from llmos.service import Context
from llmos_trainer import core
from llmos_trainer.checks import check
from llmos_trainer.config import TrainerConfig
from llmos_trainer.runs import Run, Work, work_folder
from llmos_trainer.sweeping import keep_sweeping
from llmos_trainer.trainings import train

WORKS: dict[Kind, Work] = {"check": check, "train": train}
AT_ONCE = 32  # assignments of a kind; what fits is the scheduler's to say
MAX_DELIVER = 10  # a rolling restart hands a long run back more than once
STOPS_KEPT = 10_000
CHILD_SHARE = 0.5  # of the time to drain: for the child's last checkpoint; then for storing it
SETTLE_SHARE = 0.85

PRELOAD = (
    "llmos_trainer.training",
    "llmos_trainer.checking",
    "transformers.models.auto.modeling_auto",
    "pyarrow.parquet",
)
TEMPLATE_ENV = {
    "OMP_WAIT_POLICY": "passive",  # threads that spin cost ten times the wall time once the cores are shared
    "OPENBLAS_NUM_THREADS": "1",  # a pool of threads would not survive the fork
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # counting GPUs must not start CUDA in the template
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


async def serve(context: Context[TrainerConfig]) -> None:
    """Take assignments until told to stop; then hand back what is not finished."""
    await asyncio.to_thread(shutil.rmtree, work_folder(context.config), ignore_errors=True)
    template = Template(PRELOAD, env=TEMPLATE_ENV)
    try:
        await template.start()
        trainer = Trainer(context, template)
        hearing = [asyncio.create_task(trainer.take(kind)) for kind in WORKS]
        hearing.append(asyncio.create_task(trainer.hear_stops()))
        hearing.append(asyncio.create_task(keep_sweeping(context, trainer.tasks)))
        context.announce(kinds=[*WORKS, "gang"], load=trainer.load)
        stopping = asyncio.create_task(context.stopping.wait())
        try:
            await asyncio.wait({stopping, *hearing}, return_when=asyncio.FIRST_COMPLETED)
            broken = [task for task in hearing if task.done()]
        finally:
            await cancel(stopping, *(task for task in hearing if not task.done()))
            await trainer.drain()
        for task in broken:
            await task  # raises what ended it
    finally:
        await template.stop()


class Trainer:
    """The runs of a node, by task."""

    def __init__(self, context: Context[TrainerConfig], template: Template) -> None:
        self._context = context
        self._template = template
        self._keys = KeyRing(context.bus, context.principal)
        self._runs: dict[str, Run] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped: dict[str, TaskStopRequested] = {}

    def tasks(self) -> set[str]:
        """The tasks that run here."""
        return set(self._runs)

    def load(self) -> dict[str, float]:
        """What the heartbeat says: how many tasks run."""
        return {"tasks": float(len(self._runs))}

    async def take(self, kind: Kind) -> None:
        """Take the assignments of a kind, for ever."""
        consumer, filter = subjects.work_consumer(kind, self._context.node)
        deliveries: AsyncIterator[Delivery[TaskAssigned]] = self._context.bus.work(
            "WORK", consumer, filter, TaskAssigned, slots=self._slots(kind), max_deliver=MAX_DELIVER
        )
        async for delivery in deliveries:
            task = asyncio.create_task(self.on_task_assigned(delivery))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def hear_stops(self) -> None:
        """Hear every stop request that is kept, then those that come."""
        async for heard in self._context.bus.follow("CONTROL", ["llmos.ctl.stop.*"]):
            try:
                request = msgspec.json.decode(heard.data, type=TaskStopRequested)
            except msgspec.DecodeError as error:
                self._context.log.warning("not a stop request", subject=heard.subject, error=str(error))
            else:
                self.on_stop_requested(request)

    async def on_task_assigned(self, delivery: Delivery[TaskAssigned]) -> None:
        """Run the task, unless its lease is stale, stopped or running already."""
        task, lease = delivery.body.task, delivery.body.lease
        running = self._runs.get(task)
        stop = self._stopped.get(task)
        decision = core.decide_assigned(
            lease, running.assigned.lease if running else None, stop.lease if stop else None
        )
        if decision == "let go":
            await delivery.ack()
            return
        if decision == "join" and running is not None:
            running.join(delivery)
            return
        run = self._runs[task] = Run(self._context, self._template, self._keys, delivery)
        try:
            if running is not None:
                running.tell("superseded")
                await running.done.wait()
            if decision == "stop" and stop is not None:
                run.tell(core.intent_of(stop))
            await run.live(WORKS[delivery.body.kind])
        finally:
            if self._runs.get(task) is run:
                del self._runs[task]

    def on_stop_requested(self, request: TaskStopRequested) -> None:
        """Stop the task if it runs under that lease, and remember the request for an assignment that is yet to come."""
        self._stopped[request.task] = core.newest_stop(self._stopped.pop(request.task, None), request)
        if len(self._stopped) > STOPS_KEPT:
            del self._stopped[next(iter(self._stopped))]
        run = self._runs.get(request.task)
        if run is not None and run.assigned.lease == request.lease:
            run.tell(core.intent_of(request))

    async def drain(self) -> None:
        """Hand every run back, with a checkpoint if time allows; returns well within `drain_s`."""
        patience = self._context.config.drain_s
        for run in list(self._runs.values()):
            run.tell("drain", within=patience * CHILD_SHARE)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=patience * SETTLE_SHARE)
        await cancel(*self._tasks)

    def _slots(self, kind: Kind) -> Callable[[], int]:
        return lambda: AT_ONCE - sum(run.assigned.kind == kind for run in self._runs.values())
