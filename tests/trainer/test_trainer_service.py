"""The trainer on a real bus: assignments become facts, whatever is killed on the way."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from llmos.artifacts import get_manifest, get_tree, open_store
from llmos.bus import Bus
from llmos.contracts import subjects
from llmos.contracts.jobs import DataSource, JobSpec, ModelSource, TrainSettings
from llmos.contracts.tasks import (
    CheckpointPointer,
    Kind,
    TaskAssigned,
    TaskCancelled,
    TaskCheckpointed,
    TaskFailed,
    TaskProgressed,
    TaskRejected,
    TaskStarted,
    TaskStopRequested,
    TaskSucceeded,
)
from llmos.service import Context, running
from llmos_trainer.config import TrainerConfig
from llmos_trainer.service import serve


class Stack:
    """A bystander's view of a trainer: it assigns, and follows the history."""

    def __init__(self, bus: Bus, config: TrainerConfig) -> None:
        self.bus = bus
        self.config = config
        self.store = open_store((config.data_dir / "artifacts").as_uri())

    async def assign(
        self, spec: JobSpec, kind: Kind, task: str, *, lease: int = 1, inputs: dict[str, str] | None = None
    ) -> None:
        assigned = TaskAssigned(task, "job-1", "default", kind, 1, lease, spec, inputs or {}, [], 1.0)
        await self.bus.publish(
            subjects.work(kind, self.config.node, task), assigned, type="llmos.task.assigned.v1", id=f"{task}.{lease}"
        )

    async def until(self, task: str, *kinds: type[msgspec.Struct], lease: int = 1) -> list[msgspec.Struct]:
        """The task's facts up to the first of `kinds`."""
        facts = []
        async with asyncio.timeout(60):
            async for heard in self.bus.follow("EVENTS", ["llmos.evt.task.>"]):
                fact = heard.event()
                if getattr(fact, "task", "") == task and getattr(fact, "lease", 0) == lease:
                    facts.append(fact)
                    if isinstance(fact, kinds):
                        return facts
        raise AssertionError

    async def checked(self, spec: JobSpec) -> dict[str, str]:
        await self.assign(spec, "check", "task-check")
        [*_, last] = await self.until("task-check", TaskSucceeded, TaskRejected, TaskFailed)
        assert isinstance(last, TaskSucceeded), last
        return last.outputs


@pytest.fixture
async def stack(bus: Bus, nats_url: str, tmp_path: Path, tiny_model: Path) -> Stack:
    config = TrainerConfig(
        nats_url=nats_url,
        node="n1",
        data_dir=tmp_path / "data",
        file_roots=[tmp_path, tiny_model],
        checkpoint_every_s=0.2,
    )
    return Stack(bus, config)


@pytest.fixture
def spec(tiny_model: Path, write_rows: Callable[..., Path]) -> JobSpec:
    return JobSpec(
        name="topics",
        model=ModelSource(tiny_model.as_uri()),
        data=DataSource(write_rows("rows.jsonl", 240).as_uri()),
        train=TrainSettings(epochs=3, batch_size=8, learning_rate=1e-3, max_length=32),
    )


async def test_a_check_and_a_training_succeed_and_store_what_they_made(
    stack: Stack, spec: JobSpec, tmp_path: Path
) -> None:
    async with running("trainer", stack.config, serve):
        inputs = await stack.checked(spec)
        await stack.assign(spec, "train", "task-train", inputs=inputs)
        facts = await stack.until("task-train", TaskSucceeded, TaskFailed)
    assert isinstance(facts[0], TaskStarted)
    assert {type(fact) for fact in facts[1:-1]} >= {TaskProgressed, TaskCheckpointed}
    done = facts[-1]
    assert isinstance(done, TaskSucceeded), done
    assert set(done.metrics) >= {"accuracy", "f1", "loss", "test_accuracy", "test_f1", "test_loss"}
    await get_tree(stack.store, done.outputs["model"], tmp_path / "model")
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert await stack.bus.bucket("state").get("checkpoint.task-train", CheckpointPointer) is None
