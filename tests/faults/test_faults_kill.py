"""kill -9 of each part in turn, amid a job: the job still ends once, with the model of an undisturbed run."""

import asyncio
import os
import signal
from typing import Any

import pytest

from llmos import local
from outsider import Outsider, service_pid

pytestmark = pytest.mark.system

# what is killed, and the moment at which it hurts
VICTIMS = [
    ("llmos_trainer", "task.progressed", "train"),
    ("llmos_scheduler", "task.progressed", "train"),
    ("nats-server", "task.progressed", "train"),
    ("llmos_exporter", "task.started", "export"),
    ("llmos_inferencer", "task.started", "export"),
    ("llmos_vault", "task.started", "export"),
    ("llmos_audit", "task.progressed", "train"),
    ("llmos_hw_agent", "task.started", "train"),
    ("llmos_gateway", "task.started", "train"),
    ("llmos_scheduler", "task.succeeded", "check"),
    ("nats-server", "task.started", "export"),
]


def outcome(history: list[tuple[str, dict[str, Any]]]) -> dict[str, str]:
    """The trained and the exported model's addresses; exactly one of each, and one end."""
    ends = [fact for fact, _ in history if fact in ("job.deployed", "job.failed", "job.succeeded", "job.refused")]
    assert ends == ["job.deployed"], history[-1]
    trained = [
        event["outputs"]["model"] for fact, event in history if fact == "task.succeeded" and event["kind"] == "train"
    ]
    exported = [event["version"]["artifact"] for fact, event in history if fact == "model.exported"]
    assert len(trained) == len(exported) == 1
    return {"trained": trained[0], "exported": exported[0]}


def spec(outsider: Outsider) -> dict[str, Any]:
    train = outsider.spec()["train"] | {"epochs": 6, "batch_size": 8}
    return outsider.spec(train=train, deploy={"name": "survivor"})


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, str]:
    """Filled by the first test: what a run without a fault gives."""
    return {}


async def test_a_job_without_a_fault_gives_the_reference(outsider: Outsider, undisturbed: dict[str, str]) -> None:
    undisturbed |= outcome(await outsider.history(await outsider.submit(spec(outsider))))


@pytest.mark.parametrize(("victim", "moment", "kind"), VICTIMS, ids=lambda value: str(value))
async def test_a_killed_part_costs_time_only(
    outsider: Outsider, stack: local.StackInfo, undisturbed: dict[str, str], victim: str, moment: str, kind: str
) -> None:
    assert undisturbed, "the reference run failed"
    job = await outsider.submit(spec(outsider))
    await outsider.until(job, moment, kind=kind)
    pid = service_pid(stack, victim)
    assert pid
    os.kill(pid, signal.SIGKILL)
    history = await outsider.history(job, within=150)
    assert outcome(history) == undisturbed
    async with asyncio.timeout(30):
        while service_pid(stack, victim) in (0, pid):
            await asyncio.sleep(0.1)
    answer = await outsider.infer("survivor", ["the camera is lovely and good"], within=40)
    assert answer["outputs"][0]["label"] == "positive"
