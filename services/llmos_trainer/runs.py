"""One assignment on its way: its sign of life, its children, being told to end, and its last word.

What the work of a kind is stands in `checks` and `trainings`; both end with an `Effect` that is performed here.
"""

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from llmos.artifacts import Cipher, get_manifest, get_tree, put_tree
from llmos.bus import Delivery
from llmos.cancel import cancel
from llmos.contracts.tasks import (
    TaskAssigned,
    TaskCancelled,
    TaskFailed,
    TaskProgressed,
    TaskRejected,
    TaskStarted,
    TaskSucceeded,
)
from llmos.errors import Busy, Fatal, LlmosError, Problem, Rejected
from llmos.forking import Child, Template
from llmos.keyring import KeyRing
from llmos.service import Context
from llmos_trainer import core
from llmos_trainer.config import TrainerConfig
from llmos_trainer.core import Effect, Intent
from llmos_trainer.orders import DRAIN, STOP, End, Finished, Listening, Progressed, Report, Snapshotted, decode_report

T = TypeVar("T")
Work = Callable[["Run"], Awaitable[Effect]]

PROGRESS_S = 1.0  # facts of progress come no faster
ALIVE_S = 8.0  # and no slower
STOP_WITHIN_S = 5.0  # a cancelled child that does not end is killed
SAVE_WITHIN_S = 30.0  # and one that shall save what is done; until it has, its last periodic checkpoint is the newest


class Told(Exception):
    """The run was told to end while no child was there to be told."""


class Run:
    """A task under one lease. `done` is set when its last word is said, or given up.

    `afterwards`, if the work sets it, is called once the message is settled, with the effect that ended the run.
    """

    def __init__(
        self, context: Context[TrainerConfig], template: Template, keys: KeyRing, delivery: Delivery[TaskAssigned]
    ) -> None:
        self.context = context
        self.template = template
        self.assigned = delivery.body
        self.folder = work_folder(context.config) / f"{self.assigned.task}.{self.assigned.lease}"
        self.intent: Intent | None = None
        self.done = asyncio.Event()
        self.log = context.log.bind(task=self.assigned.task, lease=self.assigned.lease)
        self._keys = keys
        self._deliveries = [delivery]
        self._told = asyncio.Event()
        self._children: dict[Child, asyncio.Task[None] | None] = {}  # and who kills it if it does not stop
        self._progress = Progressed("starting")
        self._fresh = asyncio.Event()
        self.afterwards: Callable[[Effect], Awaitable[None]] | None = None

    # --- its life ---

    async def live(self, work: Work) -> None:
        """Do the work, say its last word, and settle the message. Raises nothing but cancellation."""
        delivery = self._deliveries[0]
        self.log.info("taken", kind=self.assigned.kind, job=self.assigned.job, delivery=delivery.deliveries)
        async with delivery.kept_alive():
            try:
                with self.context.telemetry.span(
                    f"task.{self.assigned.kind}",
                    parent=delivery.envelope.traceparent,
                    kind="consumer",
                    job=self.assigned.job,
                    task=self.assigned.task,
                ):
                    effect = await self._work(work)
                    await self._conclude(effect)
            except LlmosError as error:  # the bus is away: the message comes again, and what was done is resumed
                self.log.warning("not concluded", error=str(error))
                await self._settle(done=False)
            except asyncio.CancelledError:
                await self._settle(done=False)
                raise
            finally:
                await asyncio.to_thread(shutil.rmtree, self.folder, ignore_errors=True)
                self.done.set()

    async def _work(self, work: Work) -> Effect:
        try:
            await asyncio.to_thread(self.folder.mkdir, mode=0o700, parents=True, exist_ok=True)
            async with self._speaking():
                effect = await work(self)
                if not isinstance(effect, core.SaySucceeded):
                    return effect
                self.progress(msgspec.structs.replace(self._progress, phase="storing"))
                stored = {role: await self._put(role, Path(folder)) for role, folder in effect.outputs.items()}
                return core.decide_ended(Finished(stored, effect.metrics), "", self.intent, 0)
        except Told:
            return core.decide_ended(None, "", self.intent, 0)
        except Rejected as error:
            return core.SayFailed(error.problem, retryable=False)
        except LlmosError as error:
            return core.SayFailed(error.problem, retryable=True)
        except Exception as error:  # one task's surprise must not end the service: it is logged whole, and said
            self.log.exception("unexpected")
            message = f"{type(error).__name__}: {error}"
            return core.SayFailed(Problem("internal", message, remedy="Look at the trainer's log."), retryable=True)

    async def _conclude(self, effect: Effect) -> None:
        """Perform the effect that ends the run. Raises `LlmosError` when its fact could not be said."""
        self.log.info("ended", outcome=type(effect).__name__)
        match effect:
            case core.SaySucceeded() | core.SayRejected() | core.SayCancelled() if self.silent:
                pass
            case core.SaySucceeded(outputs, metrics):
                await self._say(TaskSucceeded, "succeeded", outputs=outputs, metrics=metrics)
            case core.SayRejected(faults):
                await self._say(TaskRejected, "rejected", faults=faults)
            case core.SayFailed(problem, retryable):
                await self._say(TaskFailed, "failed", problem=problem, retryable=retryable)
            case core.SayCancelled():
                await self._say(TaskCancelled, "cancelled")
        await self._settle(done=not isinstance(effect, core.HandBack))
        if self.afterwards is not None:
            try:
                await self.afterwards(effect)
            except LlmosError as error:  # what is left behind only takes room
                self.log.warning("not tidied up", error=str(error))

    async def _settle(self, *, done: bool) -> None:
        for delivery in self._deliveries:
            with suppress(Exception):  # a message that can't be settled comes again, and then changes nothing
                await (delivery.ack() if done else delivery.nak())

    def join(self, delivery: Delivery[TaskAssigned]) -> None:
        """The message came again while the run lives: settle it together with the first."""
        self._deliveries.append(delivery)

    # --- being told to end ---

    def tell(self, intent: Intent, within: float | None = None) -> None:
        """End at the next step's boundary; a child that takes longer than `within` seconds is killed (by default 5, or
        30 if it has to save what is done)."""
        if not core.overrides(intent, self.intent):
            return
        self.intent = intent
        self._told.set()
        if within is None:
            within = SAVE_WITHIN_S if intent in core.SAVING else STOP_WITHIN_S
        for child, killing in self._children.items():
            if killing is not None:
                killing.cancel()
            self._children[child] = asyncio.create_task(self._end_child(child, intent, within))

    async def _end_child(self, child: Child, intent: Intent, within: float) -> None:
        await child.send(DRAIN if intent in core.SAVING else STOP)
        await asyncio.sleep(within)
        await child.kill()

    async def told_within(self, seconds: float) -> None:
        """Wait until the run is told to end, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._told.wait()

    async def unless_told(self, action: Coroutine[Any, Any, T]) -> T:
        """Await something without a child; raises `Told` as soon as the run shall end."""
        doing = asyncio.ensure_future(action)
        told = asyncio.ensure_future(self._told.wait())
        try:
            await asyncio.wait({doing, told}, return_when=asyncio.FIRST_COMPLETED)
            if self._told.is_set():
                raise Told
            return await doing
        finally:
            await cancel(told, doing)

    # --- its children ---

    async def child(
        self,
        target: str,
        order: Struct,
        env: Mapping[str, str],
        hear: Callable[[Report], None] = lambda _: None,
        *,
        quiet: bool = False,
    ) -> tuple[End | None, str]:
        """Run a child to its end: its last word, if it had one, and how its process ended.

        `hear` is told what it says on the way. The progress of a `quiet` one is not the run's.
        """
        try:
            child = await self.template.fork(target, msgspec.json.encode(order), env=env)
        except Fatal as error:  # the template died just now; the next fork starts a new one
            return None, str(error)
        self._children[child] = None
        end: End | None = None
        try:
            if self.intent is not None:  # told while the child was made
                await child.kill()
            async for message in child:
                report = decode_report(message)
                if isinstance(report, Progressed):
                    if not quiet:
                        self.progress(report)
                elif isinstance(report, Snapshotted | Listening):
                    hear(report)
                else:
                    end = report
            exit = await child.wait()
        except BaseException:  # cancelled, or a report that nobody can read: no child outlives its run
            await child.kill()
            raise
        finally:
            await cancel(self._children.pop(child))
        if exit.error:
            self.log.warning("a child ended by an error", error=exit.error)
        return end, str(exit)

    # --- its sign of life ---

    @property
    def step(self) -> int:
        """The step that was last reported."""
        return self._progress.step

    def progress(self, report: Progressed) -> None:
        """Note how far the run is; it is said soon."""
        self._progress = report
        self._fresh.set()

    @asynccontextmanager
    async def _speaking(self) -> AsyncIterator[None]:
        speaking = asyncio.create_task(self._speak())
        try:
            yield
        finally:
            await cancel(speaking)

    async def _speak(self) -> None:
        """Say the newest progress, at most once a second and at least every 8 s."""
        while not self.silent:
            with suppress(TimeoutError):
                async with asyncio.timeout(ALIVE_S):
                    await self._fresh.wait()
            self._fresh.clear()
            said = msgspec.structs.asdict(self._progress)
            with suppress(Busy):  # the bus is away; by the time that it is back there is news
                await self._say(TaskProgressed, "", **said)
            await asyncio.sleep(PROGRESS_S)

    @property
    def silent(self) -> bool:
        """Whether somebody else speaks for the task: of a gang, rank 0 does. Only a failure is said by any."""
        return self.assigned.rank > 0

    async def say_started(self, resumed_step: int | None = None) -> None:
        """Say `TaskStarted`; a repeated delivery says it anew."""
        if self.silent:
            return
        await self._say(TaskStarted, f"started.{self._deliveries[0].deliveries}", resumed_step=resumed_step)

    async def _say(self, fact: type[Struct], name: str, **fields: Any) -> None:
        """Emit a fact; persisted when it returns. Those with a name are stored once under it."""
        assigned = self.assigned
        known = {
            "task": assigned.task,
            "job": assigned.job,
            "tenant": assigned.tenant,
            "kind": assigned.kind,
            "lease": assigned.lease,
            "node": self.context.node,
        }
        taken = {key: value for key, value in known.items() if key in fact.__struct_fields__}
        await self.emit(fact(**taken, **fields), name)

    async def emit(self, fact: Struct, name: str = "") -> None:
        """Publish a fact of this run; with a name, it is stored once."""
        id = f"{self.assigned.task}.{self.assigned.lease}.{name}" if name else ""
        await self.context.bus.emit(fact, id=id, cause=self._deliveries[0].envelope.id)

    # --- its artifacts ---

    async def bring(self, role: str) -> Path:
        """Fetch the input tree `role` into the run's folder, verified. Raises `Rejected` when there is none."""
        address = self.assigned.inputs.get(role)
        if address is None:
            raise Rejected(f"the assignment has no input {role!r}", remedy="Send the job again.", param="inputs")
        manifest = await get_manifest(self.context.store, address)
        cipher = await self.unsealing(manifest.sealed_by) if manifest.sealed_by else None
        dest = self.folder / role
        await get_tree(self.context.store, address, dest, cipher=cipher)
        return dest

    async def _put(self, kind: str, folder: Path) -> str:
        return await put_tree(self.context.store, folder, kind=kind, cipher=await self.sealing())

    async def sealing(self) -> Cipher | None:
        """The cipher for what a private job stores, `None` for any other's."""
        if not self.assigned.spec.private:
            return None
        return await self._keys.encrypting(self.assigned.tenant, self.assigned.task)

    async def unsealing(self, sealed_by: str) -> Cipher:
        """The cipher of a sealed tree by the name in its manifest."""
        return await self._keys.decrypting(sealed_by, self.assigned.task)


def work_folder(config: TrainerConfig) -> Path:
    """Where the runs of this node keep what they work on; emptied when the service starts."""
    return config.data_dir.absolute() / "trainer" / config.node
