"""Gangs end to end: a real scheduler, real trainers on three nodes, and what happens to members in a cluster."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from llmos.client import Client
from llmos.contracts.nodes import Inventory, NodeInventoried
from llmos.contracts.tasks import (
    TaskCancelled,
    TaskCheckpointed,
    TaskFailed,
    TaskPlaced,
    TaskProgressed,
    TaskStarted,
    TaskSucceeded,
)
from llmos.history import follow_job
from llmos.natsserver import NatsServer
from llmos.service import running
from llmos_scheduler.config import SchedulerConfig
from llmos_scheduler.service import serve as schedule
from llmos_trainer.config import TrainerConfig
from llmos_trainer.service import serve as train

pytestmark = [pytest.mark.system, pytest.mark.asyncio(loop_scope="module")]
NODES = ("w0", "w1", "w2")


class Cluster:
    """Three nodes with a CPU each, in one process."""

    def __init__(self, client: Client, material: Path) -> None:
        self.client = client
        self._material = material

    async def submit(self, *, nodes: int = 2, priority: int = 50) -> str:
        """A job that trains on whole nodes."""
        train = {"epochs": 6, "batch_size": 8, "learning_rate": 1e-3, "max_length": 32}
        data = {part: (self._material / f"{part}.jsonl").as_uri() for part in ("train", "validation", "test")}
        return await self.client.submit(
            {
                "name": "mood", "model": {"base": (self._material / "base").as_uri()}, "data": data, "train": train,
                "resources": {"cpus": 1, "memory": "256MiB", "nodes": nodes}, "priority": priority,
            }
        )  # fmt: skip

    async def facts(self, job: str, until: type[Any]) -> list[Any]:
        """The facts of the job's training up to and with the first of a kind."""
        facts: list[Any] = []
        async with asyncio.timeout(120):
            async for _, event in follow_job(self.client.bus, job):
                if getattr(event, "kind", "train") == "train":
                    facts.append(event)
                if isinstance(event, until) and getattr(event, "kind", "train") == "train":
                    return facts
        raise AssertionError


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory, material: Path) -> AsyncIterator[Cluster]:
    folder = tmp_path_factory.mktemp("cluster")
    server = await NatsServer(folder / "nats").start()
    common: dict[str, Any] = {"nats_url": server.url, "artifacts": (folder / "artifacts").as_uri()}
    async with AsyncExitStack() as up:
        client = await up.enter_async_context(await Client.connect(server.url))
        await up.enter_async_context(
            running("scheduler", SchedulerConfig(node="s", data_dir=folder / "s", **common), schedule)
        )
        for node in NODES:
            config = TrainerConfig(
                node=node, data_dir=folder / node, file_roots=[material], checkpoint_every_s=0.2, **common
            )
            await up.enter_async_context(running("trainer", config, train))
            await client.bus.emit(NodeInventoried(node, 1, Inventory(1, 2 << 30)))
        yield Cluster(client, material)
    await server.stop()


def nodes_of(placed: TaskPlaced) -> set[str]:
    return {member.node for member in placed.members}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def undisturbed(cluster: Cluster) -> list[Any]:
    return await cluster.facts(await cluster.submit(), TaskSucceeded)


async def test_a_gang_is_placed_at_once_and_one_speaks_for_it(cluster: Cluster, undisturbed: list[Any]) -> None:
    (placed,) = [fact for fact in undisturbed if isinstance(fact, TaskPlaced)]
    assert len(nodes_of(placed)) == 2
    assert {fact.node for fact in undisturbed if isinstance(fact, TaskProgressed)} == {placed.node}
    assert undisturbed[-1].outputs["model"]


async def test_a_drained_node_moves_a_gang_with_its_checkpoint_to_the_same_bytes(
    cluster: Cluster, undisturbed: list[Any]
) -> None:
    job = await cluster.submit()
    facts = await cluster.facts(job, TaskCheckpointed)
    (placed,) = [fact for fact in facts if isinstance(fact, TaskPlaced)]
    leaving = random.choice(sorted(nodes_of(placed)))
    await cluster.client.cordon(leaving, drain=True)
    try:
        facts = await cluster.facts(job, TaskSucceeded)
    finally:
        await cluster.client.uncordon(leaving)
    second = [fact for fact in facts if isinstance(fact, TaskPlaced)][-1]
    assert nodes_of(second) == set(NODES) - {leaving}
    cancelled = [fact for fact in facts if isinstance(fact, TaskCancelled)]
    assert [fact.lease for fact in cancelled] == [placed.lease]
    saved = [fact.step for fact in facts if isinstance(fact, TaskCheckpointed) and fact.lease == placed.lease][-1]
    started = [fact for fact in facts if isinstance(fact, TaskStarted)][-1]
    assert started.resumed_step == saved
    assert facts[-1].outputs == undisturbed[-1].outputs


async def test_a_killed_member_costs_one_lease_and_the_job_ends_the_same(
    cluster: Cluster, undisturbed: list[Any]
) -> None:
    job = await cluster.submit()
    await cluster.facts(job, TaskCheckpointed)
    victims = [child for template in psutil.Process(os.getpid()).children() for child in template.children()]
    assert len(victims) == 2
    with suppress(psutil.NoSuchProcess):
        random.choice(victims).kill()
    facts = await cluster.facts(job, TaskSucceeded)
    failed = [fact for fact in facts if isinstance(fact, TaskFailed)]
    assert [fact.problem.code for fact in failed] == ["child_died"]
    assert facts[-1].lease > failed[0].lease
    assert facts[-1].outputs == undisturbed[-1].outputs
