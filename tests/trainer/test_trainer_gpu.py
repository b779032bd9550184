"""Training on a CUDA device, in a child forked from a template that never touched it."""

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from llmos.contracts.jobs import DataSource, JobSpec, ModelSource, TrainSettings
from llmos.contracts.tasks import TaskAssigned
from llmos.forking import Child, Template
from llmos_trainer.datasets import write_dataset
from llmos_trainer.orders import (
    DRAIN,
    Failed,
    Finished,
    GangOrder,
    Listening,
    Progressed,
    Snapshotted,
    TrainOrder,
    decode_report,
)
from llmos_trainer.rows import Row
from llmos_trainer.service import PRELOAD, TEMPLATE_ENV
from llmos_trainer.splits import SPLITS
from llmos_trainer.trainings import environment

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.fixture
async def template() -> AsyncIterator[Template]:
    template = Template(PRELOAD, env=TEMPLATE_ENV)
    await template.start()
    yield template
    await template.stop()


@pytest.mark.parametrize("method", ["full", "lora"])
async def test_a_run_on_a_gpu_is_resumed_to_the_same_bytes(
    template: Template, method: str, tiny_model: Path, rows_of: Any, tmp_path: Path
) -> None:
    settings = TrainSettings(method=method, epochs=20, batch_size=8, learning_rate=1e-3, max_length=32)
    spec = JobSpec("gpu", ModelSource("file:///m"), DataSource("file:///d"), train=settings)
    env = environment(TaskAssigned("t", "j", "default", "train", 1, 1, spec, devices=["0"]))
    write_dataset(tmp_path / "data", {name: [Row(1, **row) for row in rows_of(96)] for name in SPLITS})

    async def train(work: str, *, every: float = 1e9, resume: str = "", drain: bool = False) -> Any:
        order = TrainOrder(
            task="t", recipe="r", dataset=str(tmp_path / "data"), base=str(tiny_model), work=str(tmp_path / work),
            settings=settings, device="cuda", checkpoint_every_s=every, resume=resume,
        )  # fmt: skip
        child = await template.fork("llmos_trainer.training:run", msgspec.json.encode(order), env=env)
        reports = []
        async for message in child:
            reports.append(decode_report(message))
            if drain and isinstance(reports[-1], Progressed) and reports[-1].phase == "training":
                await child.send(DRAIN)
        assert (await child.wait()).ok
        return reports

    def digest(reports: Any) -> str:
        assert isinstance(reports[-1], Finished), reports[-1]
        return hashlib.sha256((Path(reports[-1].trees["model"]) / "model.safetensors").read_bytes()).hexdigest()

    undisturbed = digest(await train("undisturbed"))
    assert digest(await train("again")) == undisturbed
    drained = await train("drained", every=0.05, drain=True)
    taken = [report for report in drained if isinstance(report, Snapshotted)]
    assert taken
    for at in (taken[0], taken[-1]):
        assert digest(await train(f"resumed-{at.step}", resume=at.path)) == undisturbed


async def test_a_run_that_needs_more_than_its_share_of_a_gpu_is_told_so(
    template: Template, tiny_model: Path, rows_of: Any, tmp_path: Path
) -> None:
    spec = JobSpec("gpu", ModelSource("file:///m"), DataSource("file:///d"))
    assigned = TaskAssigned("t", "j", "default", "train", 1, 1, spec, devices=["0"], gpu_milli=1, gpu_memory=1 << 20)
    write_dataset(tmp_path / "data", {name: [Row(1, **row) for row in rows_of(96)] for name in SPLITS})
    order = TrainOrder(
        task="t", recipe="r", dataset=str(tmp_path / "data"), base=str(tiny_model), work=str(tmp_path / "work"),
        settings=TrainSettings(), device="cuda", gpu_milli=assigned.gpu_milli, gpu_memory=assigned.gpu_memory,
    )  # fmt: skip
    child = await template.fork("llmos_trainer.training:run", msgspec.json.encode(order), env=environment(assigned))
    last = [decode_report(message) async for message in child][-1]
    assert isinstance(last, Failed)
    assert (last.problem.code, last.retryable) == ("out_of_memory", False)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices")
async def test_a_gang_on_two_gpus_is_resumed_to_the_same_bytes(
    template: Template, tiny_model: Path, rows_of: Any, tmp_path: Path
) -> None:
    settings = TrainSettings(epochs=20, batch_size=8, learning_rate=1e-3, max_length=32)
    spec = JobSpec("gpu", ModelSource("file:///m"), DataSource("file:///d"), train=settings)
    env = environment(TaskAssigned("t", "j", "default", "train", 1, 1, spec, devices=["0", "1"]))
    write_dataset(tmp_path / "data", {name: [Row(1, **row) for row in rows_of(96)] for name in SPLITS})

    async def train(work: str, *, every: float = 1e9, resume: str = "") -> list[Any]:
        """The reports of the first process."""
        children: list[Child] = []
        port, reports = 0, list[Any]()
        for rank in range(2):
            order = TrainOrder(
                task="t", recipe="r", dataset=str(tmp_path / "data"), base=str(tiny_model),
                work=str(tmp_path / work / str(rank)), settings=settings, device=f"cuda:{rank}",
                checkpoint_every_s=every, resume=resume, gang=GangOrder(rank, 2, "127.0.0.1", "x", port),
            )  # fmt: skip
            child = await template.fork("llmos_trainer.training:run", msgspec.json.encode(order), env=env)
            children.append(child)
            async for message in child:
                report = decode_report(message)
                if rank == 0:
                    reports.append(report)
                if isinstance(report, Listening):
                    port = report.port
                    break
        reports += [decode_report(message) async for message in children[0]]
        assert all([(await child.wait()).ok for child in children])
        return reports

    def digest(reports: list[Any]) -> str:
        assert isinstance(reports[-1], Finished), reports[-1]
        return hashlib.sha256((Path(reports[-1].trees["model"]) / "model.safetensors").read_bytes()).hexdigest()

    reports = await train("undisturbed", every=0.05)
    taken = [report for report in reports if isinstance(report, Snapshotted)]
    assert digest(await train("again")) == digest(reports)
    assert digest(await train("resumed", resume=taken[0].path)) == digest(reports)
