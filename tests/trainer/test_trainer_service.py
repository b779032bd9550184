"""The trainer on a real bus: assignments become facts, whatever is killed or cancelled on the way."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from llmos.artifacts import get_manifest, get_tree
from llmos.contracts import subjects
from llmos.contracts.jobs import DataSource, JobSpec, ModelSource
from llmos.contracts.tasks import (
    TaskAssigned,
    TaskCancelled,
    TaskCheckpointed,
    TaskFailed,
    TaskPlaced,
    TaskProgressed,
    TaskRejected,
    TaskStarted,
    TaskSucceeded,
)
from llmos.service import running
from llmos_trainer.service import serve
from trainers import LONG, Stack, a_child, children, gone

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_training_says_what_it_does_and_stores_a_model(
    undisturbed: list[Any], trainer: Stack, tmp_path: Path
) -> None:
    assert isinstance(undisturbed[0], TaskStarted)
    assert undisturbed[0].resumed_step is None
    assert {type(fact) for fact in undisturbed[1:-1]} >= {TaskProgressed, TaskCheckpointed}
    done = undisturbed[-1]
    assert set(done.metrics) >= {"accuracy", "f1", "loss", "test_accuracy", "test_f1", "test_loss"}
    manifest = await get_tree(trainer.store, done.outputs["model"], tmp_path / "model")
    assert manifest.kind == "model"
    names = {path.name for path in (tmp_path / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert await trainer.pointer("undisturbed") is None


async def test_a_child_that_is_killed_goes_on_from_its_checkpoint_to_the_same_bytes(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str], undisturbed: list[Any]
) -> None:
    await trainer.assign(spec, "train", "killed-child", inputs=inputs)
    killed: list[int] = []
    with suppress(psutil.NoSuchProcess, TimeoutError):  # a fast machine may be done before the second kill
        async with asyncio.timeout(20):
            for at_most in (0.3, 0.9):
                child = await a_child(besides=killed)
                await asyncio.sleep(random.uniform(0.05, at_most))
                child.kill()
                killed.append(child.pid)
    assert killed
    done = (await trainer.facts("killed-child"))[-1]
    assert isinstance(done, TaskSucceeded), done
    assert done.outputs == undisturbed[-1].outputs
    assert done.metrics == undisturbed[-1].metrics


async def test_a_child_that_always_dies_fails_the_attempt_with_the_signal_named(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str]
) -> None:
    await trainer.assign(msgspec.structs.replace(spec, train=LONG), "train", "doomed", inputs=inputs)
    killed: list[int] = []
    for _ in range(3):
        child = await a_child(besides=killed)
        killed.append(child.pid)
        child.kill()
    failed = (await trainer.facts("doomed"))[-1]
    assert isinstance(failed, TaskFailed)
    assert failed.retryable
    assert (failed.problem.code, "SIGKILL" in failed.problem.message) == ("child_died", True)


async def test_a_template_that_is_killed_costs_no_task(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str], undisturbed: list[Any]
) -> None:
    await trainer.assign(spec, "train", "no-template", inputs=inputs)
    child = await a_child()
    parent = child.parent()
    assert parent is not None
    parent.kill()
    done = (await trainer.facts("no-template"))[-1]
    assert isinstance(done, TaskSucceeded), done
    assert done.outputs == undisturbed[-1].outputs


async def test_a_stop_request_ends_a_training_at_a_step_and_leaves_nothing(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str]
) -> None:
    await trainer.assign(msgspec.structs.replace(spec, train=LONG), "train", "stopped", inputs=inputs)
    child = await a_child()
    await trainer.facts("stopped", TaskCheckpointed)
    await trainer.stop("stopped", lease=7)
    await trainer.stop("stopped")
    assert isinstance((await trainer.facts("stopped"))[-1], TaskCancelled)
    await gone([child])
    async with asyncio.timeout(5):
        while await trainer.pointer("stopped") or (trainer.config.data_dir / "trainer" / "n1" / "stopped.1").exists():
            await asyncio.sleep(0.05)


async def test_a_task_that_was_stopped_before_it_was_assigned_never_starts_a_child(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str]
) -> None:
    await trainer.stop("early")
    await asyncio.sleep(0.3)
    await trainer.assign(spec, "train", "early", inputs=inputs)
    facts = await trainer.facts("early")
    assert isinstance(facts[-1], TaskCancelled)
    assert not children(os.getpid())


async def test_a_newer_lease_takes_over_on_the_same_node(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str], undisturbed: list[Any]
) -> None:
    await trainer.assign(spec, "train", "leased", inputs=inputs)
    await trainer.facts("leased", TaskCheckpointed)
    await trainer.assign(spec, "train", "leased", lease=2, inputs=inputs)
    facts = await trainer.facts("leased", lease=2)
    assert facts[0].resumed_step > 0
    assert facts[-1].outputs == undisturbed[-1].outputs


async def test_a_run_that_diverges_is_not_tried_again(trainer: Stack, spec: JobSpec, inputs: dict[str, str]) -> None:
    wild = msgspec.structs.replace(spec.train, learning_rate=1e30, warmup=0.0)
    await trainer.assign(msgspec.structs.replace(spec, train=wild), "train", "wild", inputs=inputs)
    failed = (await trainer.facts("wild"))[-1]
    assert isinstance(failed, TaskFailed)
    assert (failed.retryable, failed.problem.code, failed.problem.param) == (False, "diverged", "train.learning_rate")


async def test_all_that_is_wrong_with_a_job_is_rejected_at_once(
    trainer: Stack, spec: JobSpec, shared_path: Path
) -> None:
    bad = shared_path / "bad.csv"
    bad.write_text("text,label\nhello,x\n,y\nbye,\n")
    data = DataSource(bad.as_uri(), validation="file:///etc/passwd", test=(shared_path / "none.csv").as_uri())
    wrong = msgspec.structs.replace(spec, data=data, model=ModelSource(f"artifact:sha256:{'0' * 64}"))
    await trainer.assign(wrong, "check", "wrong")
    rejected = (await trainer.facts("wrong"))[-1]
    assert isinstance(rejected, TaskRejected)
    assert [(fault.path, fault.line) for fault in rejected.faults] == [
        ("data.validation", None),
        ("data.test", None),
        ("model.base", None),
        (bad.as_uri(), 3),
        (bad.as_uri(), 4),
    ]


async def test_faults_in_the_data_are_told_although_the_hub_is_away(
    trainer: Stack, spec: JobSpec, shared_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    away = msgspec.structs.replace(spec, model=ModelSource("hf:some/model@main"))
    await trainer.assign(away, "check", "away")
    failed = (await trainer.facts("away"))[-1]
    assert isinstance(failed, TaskFailed)
    assert failed.retryable
    bad = shared_path / "bad-too.csv"
    bad.write_text("text,label\nhello,x\n,y\n")
    await trainer.assign(msgspec.structs.replace(away, data=DataSource(bad.as_uri())), "check", "away-and-bad")
    rejected = (await trainer.facts("away-and-bad"))[-1]
    assert isinstance(rejected, TaskRejected)
    assert {fault.path for fault in rejected.faults} >= {"model.base", bad.as_uri()}


async def test_a_check_runs_beside_a_training(trainer: Stack, spec: JobSpec, inputs: dict[str, str]) -> None:
    await trainer.assign(msgspec.structs.replace(spec, train=LONG), "train", "beside", inputs=inputs)
    await trainer.facts("beside", TaskCheckpointed)
    await trainer.assign(spec, "check", "beside-check")
    assert (await trainer.facts("beside-check"))[-1].outputs == inputs, "equal input, equal addresses"
    await trainer.stop("beside")
    await trainer.facts("beside")


@asynccontextmanager
async def vault(stack: Stack) -> AsyncIterator[None]:
    from llmos_vault.config import VaultConfig
    from llmos_vault.service import serve as serve_vault

    key = stack.config.data_dir / "root.key"
    config = VaultConfig(
        nats_url=stack.config.nats_url, node="n1", data_dir=stack.config.data_dir, root_key_file=key, create_root=True
    )
    async with running("vault", config, serve_vault):
        yield


async def test_all_artifacts_of_a_private_job_are_sealed(trainer: Stack, spec: JobSpec) -> None:
    private = msgspec.structs.replace(spec, private=True, tenant="acme")
    inputs: dict[str, str] = {}
    stored = trainer.config.data_dir.parent / "artifacts" / "sha256"
    before = {path.name for path in stored.iterdir()}
    async with vault(trainer):
        for kind in ("check", "train"):
            await trainer.bus.emit(TaskPlaced(f"private-{kind}", "job-1", "acme", kind, 1, 1, "n1"))
            await trainer.assign(private, kind, f"private-{kind}", inputs=inputs)
            if kind == "train":
                await trainer.facts("private-train", TaskCheckpointed)
                pointer = await trainer.pointer("private-train")
                assert pointer is not None
                assert (await get_manifest(trainer.store, pointer.artifact)).sealed_by == "acme/1"
            done = (await trainer.facts(f"private-{kind}"))[-1]
            assert isinstance(done, TaskSucceeded), done
            inputs |= done.outputs
    assert set(inputs) == {"dataset", "base", "model"}
    new = b""
    for path in stored.iterdir():
        with suppress(FileNotFoundError):  # a checkpoint that is removed at this moment
            new += path.read_bytes() if path.name not in before else b""
    assert b"acme/1" in new
    assert not any(word in new for word in (b"invoice", b"hidden_act", b"word_embeddings"))


async def test_a_service_that_drains_hands_its_task_back_with_a_checkpoint(
    trainer: Stack, spec: JobSpec, inputs: dict[str, str], undisturbed: list[Any]
) -> None:
    stack, config = trainer, msgspec.structs.replace(trainer.config, node="n2", checkpoint_every_s=1e9)
    async with running("trainer", config, serve):
        await stack.assign(spec, "train", "drained", node="n2", inputs=inputs)
        await stack.facts("drained", TaskCheckpointed)
    pointer = await stack.pointer("drained")
    assert pointer is not None
    waiting = await stack.bus.last_of("WORK", subjects.work("train", "n2", "drained"), TaskAssigned)
    assert waiting is not None, "handed back"
    await stack.assign(spec, "train", "drained", lease=2, inputs=inputs)
    facts = await stack.facts("drained", lease=2)
    assert facts[0].resumed_step == pointer.step
    assert facts[-1].outputs == undisturbed[-1].outputs


async def test_a_service_that_is_killed_leaves_no_child_and_its_task_ends_with_the_same_bytes(
    stack: Stack, spec: JobSpec, inputs: dict[str, str], undisturbed: list[Any]
) -> None:
    config = stack.config
    env = os.environ | {
        "LLMOS_NATS_URL": config.nats_url, "LLMOS_NODE": "n3", "LLMOS_DATA_DIR": str(config.data_dir),
        "LLMOS_ARTIFACTS": config.artifacts, "LLMOS_CHECKPOINT_EVERY_S": "0.2", "LLMOS_LOG_LEVEL": "warning",
    }  # fmt: skip
    await stack.assign(spec, "train", "killed", node="n3", inputs=inputs)
    service = await asyncio.create_subprocess_exec(sys.executable, "-m", "llmos_trainer", env=env)
    try:
        await stack.facts("killed", TaskCheckpointed)
        below = psutil.Process(service.pid).children(recursive=True)
        assert len(below) == 2, "the template and the task's child"
    finally:
        service.send_signal(signal.SIGKILL)
        await service.wait()
    await gone(below)
    async with running("trainer", msgspec.structs.replace(config, node="n3"), serve):
        facts = await stack.facts("killed")
    started = [fact.resumed_step for fact in facts if isinstance(fact, TaskStarted)]
    assert started[0] is None
    assert started[1] > 0
    assert facts[-1].outputs == undisturbed[-1].outputs
    assert await stack.bus.last_of("WORK", subjects.work("train", "n3", "killed"), TaskAssigned) is None
