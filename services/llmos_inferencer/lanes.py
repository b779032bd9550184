"""Where batches are computed: a few threads, one batch a thread, always the batch that `core.Queue` gives.

One lane drives every core it is given, so models never fight for them; more lanes only where a session can't use all.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from llmos.clock import Clock
from llmos.contracts.inference import InferenceRequested, Input, Output
from llmos.errors import LlmosError, Rejected
from llmos_inferencer.core import Limits, Queue, Waiting
from llmos_inferencer.engine import BatchEngine, Late, OutOfMemory, Prepared, Row, is_out_of_memory

INLINE_CHARACTERS = 1024  # tokenised in 0.2 ms at most, which is what the way to a thread and back costs
THREADS_A_LANE = 4  # beyond that another batch gains more than another thread


class Job:
    """The inputs of one request. `begun` once one of them is computed; seconds are monotonic."""

    def __init__(
        self, deployment: str, engine: BatchEngine, prepared: Sequence[Prepared], request: InferenceRequested
    ) -> None:
        self.deployment = deployment
        self.engine = engine
        self.prepared = prepared
        self.request = request
        self.begun = False
        self.started_at = 0.0
        self.seconds = 0.0
        self.found: list[list[Any]] = [[None] * len(each.rows) for each in prepared]
        self.missing = [len(each.rows) for each in prepared]
        self.outputs: list[Output | None] = [None] * len(prepared)
        self.left = len(prepared)
        self.items: list[Item] = []
        self.done: asyncio.Future[list[Output]] = asyncio.get_running_loop().create_future()

    def take(self, index: int, place: int, found: Any) -> None:
        """What was found for one row; the last one of an input gives its output. Raises what `read` raises."""
        self.found[index][place] = found
        self.missing[index] -= 1
        if not self.missing[index]:
            self.outputs[index] = self.engine.read(self.prepared[index], self.found[index], self.request)
            self.found[index] = []
            self.left -= 1


class Item(Waiting, kw_only=True):
    """One row of one input of a job."""

    job: Job
    index: int
    place: int
    row: Row


class Lanes:
    """Computes jobs; `observe(deployment, inputs, seconds)` is told of every batch."""

    def __init__(
        self, cores: int, clock: Clock, *, limits: Limits | None = None, observe: Callable[[str, int, float], None]
    ) -> None:
        self.count = max(1, cores // THREADS_A_LANE)
        self.threads = max(1, cores // self.count)
        self._clock = clock
        self._observe = observe
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="lane")
        self._preparing = ThreadPoolExecutor(max(1, cores // 2), thread_name_prefix="prepare")
        self._waiting: Queue[Item] = Queue(limits)
        self._running = 0
        self._arrived = 0

    async def prepare(self, engine: BatchEngine, inputs: Sequence[Input]) -> list[Prepared]:
        """Inputs as the engine's graph takes them, made in a thread unless they are small. Raises what it raises."""
        if engine.takes == "text" and sum(len(each.text) + len(each.pair) for each in inputs) <= INLINE_CHARACTERS:
            return engine.prepare(inputs)
        return await asyncio.get_running_loop().run_in_executor(self._preparing, engine.prepare, inputs)

    def submit(self, job: Job, rank: int) -> None:
        """Queue a job's inputs; `job.done` has all outputs in the end. `rank` 0 goes before 1."""
        for index, prepared in enumerate(job.prepared):
            for place, row in enumerate(prepared.rows):
                self._arrived += 1
                key = (id(job.engine), row.kind)
                item = Item(key, rank, self._arrived, row.length, job=job, index=index, place=place, row=row)
                job.items.append(item)
                self._waiting.add(item)
        self._dispatch()

    def withdraw(self, job: Job) -> None:
        """Forget what of a job has not been begun."""
        self._waiting.withdraw(job.items)
        job.items.clear()

    def close(self) -> None:
        """Wait for the batches that run."""
        self._pool.shutdown(wait=True)
        self._preparing.shutdown(wait=True)

    def _dispatch(self) -> None:
        while self._running < self.count and (batch := self._waiting.next_batch()):
            for job in {item.job for item in batch if self._is_late(item.job)}:
                self._fail(job, Late("the deadline passed before the request's turn came", remedy="Allow more time."))
            batch = [item for item in batch if not item.job.done.done()]
            if not batch:
                continue
            now = self._clock.monotonic()
            for item in batch:
                if not item.job.begun:
                    item.job.begun, item.job.started_at = True, now
            self._running += 1
            work = asyncio.get_running_loop().run_in_executor(self._pool, compute, batch)
            work.add_done_callback(partial(self._finish, batch, now))

    def _is_late(self, job: Job) -> bool:
        deadline = job.request.deadline
        return deadline is not None and not job.begun and deadline <= self._clock.now()

    def _finish(self, batch: list[Item], started: float, work: asyncio.Future[list[Any]]) -> None:
        self._running -= 1
        seconds = self._clock.monotonic() - started
        self._observe(batch[0].job.deployment, len(batch), seconds)
        results = work.result()
        self._dispatch()  # the next batch computes while these answers are read
        for item, found in zip(batch, results, strict=True):
            job = item.job
            if job.done.done():
                continue
            if isinstance(found, LlmosError):
                self._fail(job, found)
                continue
            try:
                job.take(item.index, item.place, found)
            except Exception as error:  # noqa: BLE001 - about this input, whatever it is: the others must be answered
                self._fail(job, _at_fault(item, error))
                continue
            if not job.left:
                job.seconds = started + seconds - job.started_at
                job.items.clear()
                job.done.set_result([output for output in job.outputs if output is not None])

    def _fail(self, job: Job, error: LlmosError) -> None:
        """The request is answered with this; its other inputs are not computed."""
        self.withdraw(job)
        if not job.done.done():
            job.done.set_exception(error)


def compute(batch: Sequence[Item]) -> list[Any]:
    """What was found for each row, in order; an error for one that can't be computed.

    A batch that fails is halved until the row at fault stands alone.
    """
    try:
        return list(batch[0].job.engine.run([item.row for item in batch]))
    except Exception as error:  # noqa: BLE001 - about these inputs, whatever it is: the others must be answered
        if len(batch) > 1:
            half = len(batch) // 2
            return compute(batch[:half]) + compute(batch[half:])
        return [_at_fault(batch[0], error)]


def _at_fault(item: Item, error: Exception) -> LlmosError:
    if is_out_of_memory(error):
        return OutOfMemory(
            f"there is not enough memory to compute this: {error}", remedy="Send shorter or fewer inputs."
        )
    message = error.problem.message if isinstance(error, LlmosError) else f"the model can't compute this input: {error}"
    return Rejected(
        message, remedy="Correct or leave out this input.", code="unanswerable", param=f"inputs[{item.index}]"
    )
