"""Checkpoints that nobody will resume: of jobs that ended while their training waited to go on.

Whoever runs the last lease of a task removes its checkpoints; a job that is cancelled after its training was preempted,
or that is out of attempts, has no lease. So every trainer looks around now and then.
"""

import asyncio
import random
from collections.abc import Callable

from llmos.bus import Bus, Conflict
from llmos.contracts.jobs import ENDED, JobRequested, JobView
from llmos.contracts.tasks import CheckpointPointer
from llmos.errors import LlmosError, NotFound
from llmos.service import Context
from llmos_trainer.config import TrainerConfig
from llmos_trainer.keeping import remove

EVERY_S = 3600.0


async def keep_sweeping(context: Context[TrainerConfig], running: Callable[[], set[str]]) -> None:
    """Sweep about every hour, for ever; `running` gives the tasks that run here."""
    while True:
        await asyncio.sleep(EVERY_S * random.uniform(0.5, 1.5))  # not all nodes at once
        try:
            await sweep(context, running())
        except LlmosError as error:  # the scheduler or the bus is away: the next time will do
            context.log.warning("could not sweep", error=str(error))


async def sweep(context: Context[TrainerConfig], running: set[str]) -> int:
    """Remove the checkpoints of tasks whose job has ended, but for those in `running`; how many tasks it were.

    Raises `LlmosError` when the scheduler or the bus does not answer.
    """
    bucket, swept = context.bus.bucket("state"), 0
    for key in await bucket.keys("checkpoint."):
        entry = await bucket.get(key, CheckpointPointer)
        if entry is None or not entry.value.job or entry.value.task in running:
            continue
        if await _ended(context.bus, entry.value.job):
            try:
                await bucket.delete(key, entry.revision)
            except Conflict:
                continue  # it goes on after all
            for artifact in (entry.value.artifact, entry.value.previous):
                await remove(context.store, artifact, context.log)
            swept += 1
    return swept


async def _ended(bus: Bus, job: str) -> bool:
    """Whether a job is over, or so old that the history has forgotten it."""
    try:
        view: JobView = await bus.call("scheduler", "job", JobRequested(job))
    except NotFound:
        return True
    return view.state in ENDED
