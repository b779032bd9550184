"""A bystander of real trainers: assigns and stops their tasks, follows their facts, finds their processes."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import msgspec
import psutil

from llmos.artifacts import open_store
from llmos.bus import Bus
from llmos.contracts import subjects
from llmos.contracts.jobs import JobSpec, TrainSettings
from llmos.contracts.tasks import (
    CheckpointPointer,
    Kind,
    TaskAssigned,
    TaskCancelled,
    TaskFailed,
    TaskRejected,
    TaskStopRequested,
    TaskSucceeded,
)
from llmos_trainer.config import TrainerConfig

ENDS = (TaskSucceeded, TaskRejected, TaskFailed, TaskCancelled)
LONG = TrainSettings(epochs=1000, batch_size=8, learning_rate=1e-3, max_length=32)


class Stack:
    """A bystander of trainers: it assigns and stops tasks, and follows their history."""

    def __init__(self, bus: Bus, config: TrainerConfig) -> None:
        self.bus = bus
        self.config = config
        self.store = open_store(config.artifacts)

    async def assign(
        self,
        spec: JobSpec,
        kind: Kind,
        task: str,
        *,
        lease: int = 1,
        node: str = "",
        inputs: dict[str, str] | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        node = node or self.config.node
        assigned = TaskAssigned(task, "job-1", spec.tenant, kind, 1, lease, spec, inputs or {}, rank=rank, world=world)
        id = f"{task}.{lease}.{rank}" if rank else f"{task}.{lease}"
        await self.bus.publish(subjects.work(kind, node, task), assigned, type="llmos.task.assigned.v1", id=id)

    async def assign_gang(
        self, spec: JobSpec, task: str, nodes: Sequence[str], inputs: dict[str, str], *, lease: int = 1
    ) -> None:
        """A `train` task for all of the nodes at once; the first is rank 0."""
        for rank, node in enumerate(nodes):
            await self.assign(spec, "train", task, lease=lease, node=node, inputs=inputs, rank=rank, world=len(nodes))

    async def waits(self, task: str, node: str) -> bool:
        """Whether the assignment of a `train` task is still in the queue: taken and not acked, or not taken."""
        return await self.bus.last_of("WORK", subjects.work("train", node, task), TaskAssigned) is not None

    async def facts(self, task: str, *until: type[msgspec.Struct], lease: int = 1) -> list[Any]:
        """The task's facts under a lease, up to and with the first of a kind."""
        facts = []
        async with asyncio.timeout(60):
            async for heard in self.bus.follow("EVENTS", ["llmos.evt.task.>"]):
                fact = heard.event()
                if getattr(fact, "task", "") == task and getattr(fact, "lease", 0) == lease:
                    facts.append(fact)
                    if isinstance(fact, until or ENDS):
                        return facts
        raise AssertionError

    async def stop(self, task: str, lease: int = 1, *, checkpoint: bool = False) -> None:
        request = TaskStopRequested(task, lease, checkpoint=checkpoint)
        await self.bus.publish(subjects.control_stop(task), request, type="llmos.task.stop-requested.v1")

    async def pointer(self, task: str) -> CheckpointPointer | None:
        entry = await self.bus.bucket("state").get(f"checkpoint.{task}", CheckpointPointer)
        return entry.value if entry else None


def children(of: int) -> list[psutil.Process]:
    """The processes that a service's template forked."""
    return [child for template in psutil.Process(of).children() for child in template.children()]


async def a_child(of: int = 0, besides: Sequence[int] = ()) -> psutil.Process:
    async with asyncio.timeout(30):
        while True:
            for child in children(of or os.getpid()):
                if child.pid not in besides:
                    return child
            await asyncio.sleep(0.01)


async def gone(processes: Sequence[psutil.Process]) -> None:
    async with asyncio.timeout(5):
        while any(at.is_running() and at.status() != psutil.STATUS_ZOMBIE for at in processes):
            await asyncio.sleep(0.05)
