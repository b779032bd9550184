"""Gangs over several nodes on a real bus: one lease, one voice, and one end for all."""

import asyncio
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from llmos.contracts.jobs import JobSpec
from llmos.contracts.nodes import Heartbeat
from llmos.contracts.tasks import (
    GangMeeting,
    TaskCancelled,
    TaskCheckpointed,
    TaskFailed,
    TaskProgressed,
    TaskStarted,
    TaskSucceeded,
)
from llmos.service import running
from llmos_trainer import gangs
from llmos_trainer.service import serve
from trainers import LONG, Stack, a_child, children

pytestmark = pytest.mark.asyncio(loop_scope="module")
NODES = ("g0", "g1")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(stack: Stack) -> AsyncIterator[Stack]:
    """Trainers on the nodes g0 and g1."""
    async with AsyncExitStack() as running_all:
        for node in NODES:
            await running_all.enter_async_context(
                running("trainer", msgspec.structs.replace(stack.config, node=node), serve)
            )
        yield stack


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made(pair: Stack, spec: JobSpec) -> dict[str, str]:
    """A dataset and a base."""
    await pair.assign(spec, "check", "gang-check", node="g0")
    last = (await pair.facts("gang-check"))[-1]
    assert isinstance(last, TaskSucceeded), last
    return last.outputs


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def whole(pair: Stack, spec: JobSpec, made: dict[str, str]) -> list[Any]:
    """The facts of a gang of two that nobody disturbs."""
    await pair.assign_gang(spec, "whole", NODES, made)
    return await pair.facts("whole")


async def settled(stack: Stack, task: str, *nodes: str) -> None:
    async with asyncio.timeout(10):
        for node in nodes:
            while await stack.waits(task, node):
                await asyncio.sleep(0.05)
        while await stack.bus.bucket("state").keys(f"gang.{task}."):
            await asyncio.sleep(0.05)


async def test_a_gang_trains_as_one_and_only_its_first_speaks(pair: Stack, whole: list[Any]) -> None:
    assert isinstance(whole[-1], TaskSucceeded), whole[-1]
    assert [type(fact) for fact in whole].count(TaskStarted) == 1
    assert {fact.node for fact in whole if not isinstance(fact, TaskCheckpointed)} == {"g0"}
    assert any(isinstance(fact, TaskCheckpointed) for fact in whole)
    assert set(whole[-1].outputs) == {"model"}
    await settled(pair, "whole", *NODES)


async def test_a_trainer_says_that_it_can_be_a_member(pair: Stack) -> None:
    beat = await pair.bus.bucket("nodes").get("g1.trainer", Heartbeat)
    assert beat is not None
    assert set(beat.value.kinds) == {"check", "train", "gang"}


async def test_a_gang_whose_lease_is_asked_back_goes_on_to_the_same_bytes(
    pair: Stack, spec: JobSpec, made: dict[str, str], whole: list[Any]
) -> None:
    await pair.assign_gang(spec, "moved", NODES, made)
    await pair.facts("moved", TaskCheckpointed)
    await asyncio.sleep(random.uniform(0, 0.3))
    await pair.stop("moved", checkpoint=True)
    facts = await pair.facts("moved")
    assert isinstance(facts[-1], TaskCancelled), facts[-1]
    saved = [fact for fact in facts if isinstance(fact, TaskCheckpointed)][-1]
    assert saved.step >= max((fact.step for fact in facts if isinstance(fact, TaskProgressed)), default=0)
    await settled(pair, "moved", *NODES)
    await pair.assign_gang(spec, "moved", NODES[::-1], made, lease=2)
    facts = await pair.facts("moved", lease=2)
    assert facts[0].resumed_step == saved.step
    assert (facts[-1].outputs, facts[-1].metrics) == (whole[-1].outputs, whole[-1].metrics)


async def test_a_killed_member_fails_the_lease_by_name_at_once_and_the_next_one_goes_on(
    pair: Stack, spec: JobSpec, made: dict[str, str], whole: list[Any]
) -> None:
    await pair.assign_gang(spec, "hit", NODES, made)
    await pair.facts("hit", TaskCheckpointed)
    victim = random.choice(children(os.getpid()))
    since = time.monotonic()
    victim.kill()
    failed = (await pair.facts("hit"))[-1]
    assert isinstance(failed, TaskFailed), failed
    assert (failed.retryable, failed.problem.code, "SIGKILL" in failed.problem.message) == (True, "child_died", True)
    await pair.stop("hit", checkpoint=True)  # as the scheduler does when a member has failed
    async with asyncio.timeout(10):
        while children(os.getpid()):
            await asyncio.sleep(0.05)
    assert time.monotonic() - since < 15, "seconds, not the network's half an hour"
    await settled(pair, "hit", *NODES)
    assert await pair.pointer("hit") is not None
    await pair.assign_gang(spec, "hit", NODES, made, lease=2)
    facts = await pair.facts("hit", lease=2)
    assert facts[0].resumed_step > 0
    assert facts[-1].outputs == whole[-1].outputs


async def test_a_service_that_drains_stops_its_gang_with_a_checkpoint(
    pair: Stack, spec: JobSpec, made: dict[str, str]
) -> None:
    config = msgspec.structs.replace(pair.config, node="g2", checkpoint_every_s=1e9)
    long = msgspec.structs.replace(spec, train=LONG)
    async with running("trainer", config, serve):
        await pair.assign_gang(long, "drained", ("g0", "g2"), made)
        await pair.facts("drained", TaskCheckpointed)
    facts = await pair.facts("drained")
    assert isinstance(facts[-1], TaskCancelled), facts[-1]
    pointer = await pair.pointer("drained")
    assert pointer is not None
    assert pointer.step >= max(fact.step for fact in facts if isinstance(fact, TaskProgressed))
    await settled(pair, "drained", "g0", "g2")


async def test_a_member_that_comes_again_after_its_gang_is_gone_says_so(
    pair: Stack, spec: JobSpec, made: dict[str, str]
) -> None:
    """As after a crash of its service: the message comes again, and the meeting point may still be written there."""
    bucket = pair.bus.bucket("state")
    await bucket.put("gang.gone.1", GangMeeting("gone", 1, "127.0.0.1", 9, "old"))
    await pair.assign(spec, "train", "gone", node="g1", inputs=made, rank=1, world=2)
    failed = (await pair.facts("gone"))[-1]
    assert isinstance(failed, TaskFailed), failed
    assert (failed.node, failed.retryable, failed.problem.code) == ("g1", True, "gang_broken")
    await bucket.delete("gang.gone.1")
    await settled(pair, "gone", "g1")


async def test_a_member_that_waits_for_a_meeting_is_stopped_without_a_word(
    pair: Stack, spec: JobSpec, made: dict[str, str]
) -> None:
    await pair.assign(spec, "train", "waiting", node="g1", inputs=made, rank=1, world=2)
    async with asyncio.timeout(20):
        while not (pair.config.data_dir / "trainer" / "g1" / "waiting.1" / "base").exists():
            await asyncio.sleep(0.05)
    await pair.stop("waiting", checkpoint=True)
    await settled(pair, "waiting", "g1")
    facts = [
        await pair.bus.last_of("EVENTS", f"llmos.evt.task.*.*.{task}", msgspec.Raw) for task in ("gone", "waiting")
    ]
    assert [fact is not None for fact in facts] == [True, False]


async def test_a_first_member_that_is_started_again_does_not_meet_the_others_of_its_last_life(
    pair: Stack, spec: JobSpec, made: dict[str, str]
) -> None:
    bucket = pair.bus.bucket("state")
    await bucket.put("gang.again.1", GangMeeting("again", 1, "127.0.0.1", 1, "old"))
    await bucket.put("gang.again.0", GangMeeting("again", 0, "127.0.0.1", 1, "older"))
    await pair.assign(spec, "train", "again", node="g0", inputs=made, rank=0, world=2)
    failed = (await pair.facts("again"))[-1]
    assert isinstance(failed, TaskFailed)
    assert (failed.retryable, failed.problem.code) == (True, "gang_broken")
    await settled(pair, "again", "g0")


async def test_the_processes_of_one_node_are_a_gang_that_starts_again_by_itself(
    pair: Stack, spec: JobSpec, made: dict[str, str], whole: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a node with two GPUs: one process each, but here both on the CPU."""
    monkeypatch.setattr(gangs, "processes", lambda assigned: 2)
    await pair.assign(spec, "train", "local", node="g0", inputs=made)
    await pair.facts("local", TaskCheckpointed)
    child = await a_child()
    child.kill()
    facts = await pair.facts("local")
    assert isinstance(facts[-1], TaskSucceeded), facts[-1]
    assert facts[-1].outputs == whole[-1].outputs
