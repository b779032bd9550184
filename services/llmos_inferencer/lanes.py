"""Where batches are computed: a few threads, one batch a thread, always the batch that `core.Queue` gives.

One lane drives every core it is given, so models never fight for them; more lanes only where a session can't use all.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numpy.typing import NDArray

from llmos.clock import Clock
from llmos.contracts.inference import Output
from llmos.errors import LlmosError, Rejected
from llmos_inferencer.core import Limits, Queue, Waiting
from llmos_inferencer.engine import Engine, Tokens

THREADS_A_LANE = 4  # beyond that another batch gains more than another thread
Result = Output | LlmosError


class Late(Rejected):
    """The request's deadline passed before its turn came."""

    code = "deadline"


class Job:
    """The inputs of one request. `begun` once one of them is computed; seconds are monotonic."""

    def __init__(self, deployment: str, engine: Engine, size: int, top: int, deadline: float | None) -> None:
        self.deployment = deployment
        self.engine = engine
        self.top = top
        self.deadline = deadline
        self.begun = False
        self.started_at = 0.0
        self.seconds = 0.0
        self.outputs: list[Output | None] = [None] * size
        self.left = size
        self.inputs: list[Input] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Input(Waiting, kw_only=True):
    """One input of a job."""

    job: Job
    index: int
    tokens: Tokens


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
        self._waiting: Queue[Input] = Queue(limits)
        self._running = 0
        self._arrived = 0

    def submit(self, job: Job, tokens: Sequence[Tokens], rank: int) -> None:
        """Queue a job's inputs; `job.done` says when all are computed. `rank` 0 goes before 1."""
        for index, text in enumerate(tokens):
            self._arrived += 1
            item = Input(id(job.engine), rank, self._arrived, len(text.ids), job=job, index=index, tokens=text)
            job.inputs.append(item)
            self._waiting.add(item)
        self._dispatch()

    def withdraw(self, job: Job) -> None:
        """Forget what of a job has not been begun."""
        self._waiting.withdraw(job.inputs)
        job.inputs.clear()

    def close(self) -> None:
        """Wait for the batches that run."""
        self._pool.shutdown(wait=True)

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
        return job.deadline is not None and not job.begun and job.deadline <= self._clock.now()

    def _finish(self, batch: list[Input], started: float, work: asyncio.Future[list[Result]]) -> None:
        self._running -= 1
        seconds = self._clock.monotonic() - started
        self._observe(batch[0].job.deployment, len(batch), seconds)
        for item, result in zip(batch, work.result(), strict=True):
            job = item.job
            if isinstance(result, LlmosError):
                self._fail(job, result)
                continue
            job.outputs[item.index] = result
            job.left -= 1
            if not job.left and not job.done.done():
                job.seconds = started + seconds - job.started_at
                job.inputs.clear()
                job.done.set_result(None)
        self._dispatch()

    def _fail(self, job: Job, error: LlmosError) -> None:
        """The request is answered with this; its other inputs are not computed."""
        self.withdraw(job)
        if not job.done.done():
            job.done.set_exception(error)


def compute(batch: Sequence[Input]) -> list[Result]:
    """The result of each input, in order. A batch that fails is halved until the input at fault stands alone."""
    engine = batch[0].job.engine
    try:
        rows = engine.run([item.tokens for item in batch])
    except Exception as error:  # noqa: BLE001 - about these inputs, whatever it is: the others must be answered
        if len(batch) > 1:
            half = len(batch) // 2
            return compute(batch[:half]) + compute(batch[half:])
        return [_at_fault(batch[0], f"the model can't compute this text: {error}")]
    return [_read(engine, item, row) for item, row in zip(batch, rows, strict=True)]


def _read(engine: Engine, item: Input, row: NDArray[np.float32]) -> Result:
    try:
        return engine.read(row, item.job.top)
    except Rejected as error:
        return _at_fault(item, error.problem.message)


def _at_fault(item: Input, message: str) -> LlmosError:
    return Rejected(
        message, remedy="Correct or leave out this text.", code="unanswerable", param=f"inputs[{item.index}]"
    )
