"""Checkpoints of jobs that ended while their training waited are removed, and no others."""

import asyncio
from pathlib import Path

import pytest
import structlog

from llmos.artifacts import ArtifactStore, put_tree
from llmos.bus import Bus
from llmos.cancel import cancel
from llmos.clock import SystemClock
from llmos.contracts.envelope import Envelope
from llmos.contracts.jobs import JobRequested, JobState, JobView
from llmos.contracts.tasks import CheckpointPointer
from llmos.errors import NotFound
from llmos.service import Context
from llmos.telemetry import Telemetry
from llmos_trainer.config import TrainerConfig
from llmos_trainer.sweeping import sweep

STATES: dict[str, JobState] = {"cancelled": "cancelled", "failed": "failed", "waits": "queued", "runs": "training"}


@pytest.fixture
def context(bus: Bus, nats_url: str, tmp_path: Path) -> Context[TrainerConfig]:
    from llmos.artifacts import open_store

    config = TrainerConfig(nats_url=nats_url, node="n1", data_dir=tmp_path)
    store = open_store((tmp_path / "artifacts").as_uri())
    context = Context("trainer", config, bus, store, Telemetry("trainer"), SystemClock())
    context.log = structlog.get_logger()
    return context


async def checkpoint(store: ArtifactStore, folder: Path, task: str) -> str:
    folder.mkdir()
    (folder / "weights").write_text(task)
    return await put_tree(store, folder, kind="checkpoint", meta={"task": task})


async def test_what_no_job_will_resume_is_removed(context: Context[TrainerConfig], bus: Bus, tmp_path: Path) -> None:
    async def on_job(request: JobRequested, _: Envelope) -> JobView:
        if request.job not in STATES:
            raise NotFound(f"there is no job {request.job}")
        return JobView(request.job, "n", "default", "default", STATES[request.job], 50, 0.0)

    bucket = bus.bucket("state")
    for job in (*STATES, "forgotten", "busy"):
        artifact = await checkpoint(context.store, tmp_path / job, f"{job}-task")
        await bucket.put(f"checkpoint.{job}-task", CheckpointPointer(f"{job}-task", 1, 3, artifact, "", job))
    await bucket.put("checkpoint.old-task", CheckpointPointer("old-task", 1, 3, "sha256:" + "0" * 64))
    serving = asyncio.create_task(bus.serve("scheduler", {"job": on_job}))
    try:
        assert await sweep(context, {"busy-task"}) == 3
        assert await sweep(context, {"busy-task"}) == 0
    finally:
        await cancel(serving)
    left = {key.removeprefix("checkpoint.").removesuffix("-task") for key in await bucket.keys("checkpoint.")}
    assert left == {"waits", "runs", "busy", "old"}
    stored = [path.read_text(errors="replace") for path in (tmp_path / "artifacts" / "sha256").iterdir()]
    assert {text for text in stored if text.endswith("-task")} == {"waits-task", "runs-task", "busy-task"}
