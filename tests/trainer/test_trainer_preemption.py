"""A lease that is asked back: the trainer saves what is done, and the task goes on elsewhere to the same end."""

import asyncio
import os
import random
import signal
import sys
from typing import Any

import msgspec
import pytest

from llmos.contracts import subjects
from llmos.contracts.jobs import JobSpec
from llmos.contracts.tasks import TaskAssigned, TaskCancelled, TaskCheckpointed, TaskProgressed, TaskSucceeded
from llmos.service import running
from llmos_trainer.service import serve
from trainers import LONG, Stack, a_child, children

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_preempted_training_goes_on_on_another_node_to_the_same_bytes(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str], undisturbed: list[Any]
) -> None:
    rarely = msgspec.structs.replace(trainer.config, node="n2", checkpoint_every_s=1e9)
    async with running("trainer", rarely, serve):
        await trainer.assign(spec, "train", "moved", node="n2", inputs=inputs)
        await trainer.facts("moved", TaskCheckpointed)
        await asyncio.sleep(random.uniform(0, 0.5))
        await trainer.stop("moved", checkpoint=True)
        facts = await trainer.facts("moved")
        assert isinstance(facts[-1], TaskCancelled), facts[-1]
        saved = [fact for fact in facts if isinstance(fact, TaskCheckpointed)][-1]
        pointer = await trainer.pointer("moved")
        assert pointer is not None, "the task will be resumed"
        assert (pointer.step, pointer.artifact) == (saved.step, saved.artifact)
        done = max((fact.step for fact in facts if isinstance(fact, TaskProgressed)), default=0)
        assert saved.step >= done, "no step is lost"
        assert await trainer.bus.last_of("WORK", subjects.work("train", "n2", "moved"), TaskAssigned) is None
    await trainer.assign(spec, "train", "moved", lease=2, inputs=inputs)
    facts = await trainer.facts("moved", lease=2)
    assert facts[0].resumed_step == saved.step
    assert (facts[-1].outputs, facts[-1].metrics) == (undisturbed[-1].outputs, undisturbed[-1].metrics)


async def test_a_training_that_is_done_when_it_is_preempted_succeeds(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str], undisturbed: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from llmos_trainer.runs import Run

    async def slowly(run: Run, *args: Any) -> str:
        await trainer.stop("done", checkpoint=True)
        while run.intent is None:
            await asyncio.sleep(0.01)
        return await put(run, *args)

    put = Run._put
    monkeypatch.setattr(Run, "_put", slowly)
    await trainer.assign(spec, "train", "done", inputs=inputs)
    last = (await trainer.facts("done"))[-1]
    assert isinstance(last, TaskSucceeded)
    assert last.outputs == undisturbed[-1].outputs


async def test_a_lease_that_is_asked_back_before_it_starts_leaves_the_checkpoint_alone(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str]
) -> None:
    long = msgspec.structs.replace(spec, train=LONG)
    await trainer.assign(long, "train", "twice", inputs=inputs)
    await trainer.facts("twice", TaskCheckpointed)
    await trainer.stop("twice", checkpoint=True)
    await trainer.facts("twice")
    kept = await trainer.pointer("twice")
    await trainer.stop("twice", lease=2, checkpoint=True)
    await asyncio.sleep(0.3)
    await trainer.assign(long, "train", "twice", lease=2, inputs=inputs)
    assert isinstance((await trainer.facts("twice", lease=2))[-1], TaskCancelled)
    assert not children(os.getpid())
    assert kept is not None
    assert await trainer.pointer("twice") == kept


async def test_a_preempted_training_whose_job_is_cancelled_meanwhile_leaves_nothing(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str]
) -> None:
    await trainer.assign(msgspec.structs.replace(spec, train=LONG), "train", "both", inputs=inputs)
    await a_child()
    await trainer.facts("both", TaskCheckpointed)
    await trainer.stop("both", checkpoint=True)
    await trainer.stop("both")
    assert isinstance((await trainer.facts("both"))[-1], TaskCancelled)
    async with asyncio.timeout(5):
        while await trainer.pointer("both"):
            await asyncio.sleep(0.05)


async def test_trainers_killed_at_random_while_they_save_lose_little_and_change_nothing(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str], undisturbed: list[Any]
) -> None:
    """Real processes, a new node each time: preempted, and killed -9 within the time in which it saves."""
    stack, config, task = trainer, trainer.config, "hunted"
    for lease in range(1, 3):
        node = f"p{lease}"
        env = os.environ | {
            "LLMOS_NATS_URL": config.nats_url, "LLMOS_NODE": node, "LLMOS_DATA_DIR": str(config.data_dir),
            "LLMOS_ARTIFACTS": config.artifacts, "LLMOS_CHECKPOINT_EVERY_S": "0.2", "LLMOS_LOG_LEVEL": "warning",
        }  # fmt: skip
        await stack.assign(spec, "train", task, lease=lease, node=node, inputs=inputs)
        service = await asyncio.create_subprocess_exec(sys.executable, "-m", "llmos_trainer", env=env)
        try:
            facts = await stack.facts(task, TaskCheckpointed, TaskSucceeded, lease=lease)
            if isinstance(facts[-1], TaskSucceeded):
                break
            await asyncio.sleep(random.uniform(0, 0.2))
            await stack.stop(task, lease=lease, checkpoint=True)
            await asyncio.sleep(random.uniform(0, 0.3))
        finally:
            service.send_signal(signal.SIGKILL)
            await service.wait()
        before = await stack.pointer(task)
        assert before is None or before.step >= facts[-1].step
    await stack.assign(spec, "train", task, lease=9, inputs=inputs)
    last = (await stack.facts(task, lease=9))[-1]
    assert isinstance(last, TaskSucceeded), last
    assert (last.outputs, last.metrics) == (undisturbed[-1].outputs, undisturbed[-1].metrics)
