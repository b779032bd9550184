"""Versions beside each other, and models that come and go: nothing is lost, nothing is mixed."""

import asyncio
from collections import Counter
from itertools import pairwise
from typing import Any

from llmos.contracts.deployments import ReplicaReady
from llmos.contracts.inference import InferenceAnswered


async def ask_on(stand: Any, answers: list[InferenceAnswered], clients: int = 8) -> None:
    """Ask until cancelled, as so many clients."""

    async def client() -> None:
        while True:
            answers.append(await stand.ask("good", "bad"))

    await asyncio.gather(*(client() for _ in range(clients)))


async def more(answers: list[InferenceAnswered]) -> None:
    """Wait for some answers more."""
    enough = len(answers) + 30
    while len(answers) < enough:
        await asyncio.sleep(0.005)


def check_whole(answers: list[InferenceAnswered]) -> Counter[int]:
    """Every answer was given, and by one version alone; how many by each."""
    for answer in answers:
        assert answer.problem is None, answer.problem
        assert {output.label.split("-")[1] for output in answer.outputs} == {str(answer.version)}
    return Counter(answer.version for answer in answers)


async def test_a_canary_answers_its_share_until_it_becomes_the_version_or_is_taken_back(stand: Any) -> None:
    first, second, third = [await stand.register(number) for number in (1, 2, 3)]
    async with stand.running():
        await stand.ready(await stand.deploy(first))
        await stand.ready(await stand.deploy(first, canary=second, weight=30))
        counts = check_whole(await asyncio.gather(*(stand.ask("good", "bad") for _ in range(300))))
        assert 40 < counts[2] < 140 and counts[1] + counts[2] == 300
        ready = await stand.ready(await stand.deploy(second))
        assert ready.load_s < 0.1  # it was loaded already
        await stand.unloaded(version=1)
        await stand.ready(await stand.deploy(second, canary=third, weight=100))
        assert check_whole([await stand.ask("good", "bad")]) == {3: 1}
        await stand.ready(await stand.deploy(second))
        await stand.unloaded(version=3)
        assert check_whole([await stand.ask("good", "bad")]) == {2: 1}


async def test_swaps_and_canaries_under_load_fail_no_request_and_mix_no_answer(stand: Any) -> None:
    versions = [await stand.register(number) for number in (1, 2, 3, 4)]
    answers: list[InferenceAnswered] = []
    async with stand.running():
        await stand.ready(await stand.deploy(versions[0]))
        clients = asyncio.create_task(ask_on(stand, answers))
        for old, new in pairwise(versions):
            await more(answers)
            await stand.ready(await stand.deploy(old, canary=new, weight=50))
            await more(answers)
            await stand.ready(await stand.deploy(new))
        await more(answers)
        await stand.ready(await stand.deploy(versions[0]))
        await stand.unloaded(version=4)
        clients.cancel()
    assert set(check_whole(answers)) == {1, 2, 3, 4}


async def test_a_canary_that_cannot_be_loaded_leaves_what_serves_as_it_was(stand: Any) -> None:
    first, second = await stand.register(1), await stand.register(2)
    async with stand.running():
        await stand.ready(await stand.deploy(first))
        mislabelled = stand.sign("mood", 3, "sha256:" + "0" * 64)
        failed = await stand.failed(await stand.deploy(first, canary=mislabelled, weight=50))
        assert failed.problem.code == "not_found"
        counts = check_whole(await asyncio.gather(*(stand.ask("good", "bad") for _ in range(20))))
        assert counts == {1: 20}
        await stand.ready(await stand.deploy(first, canary=second, weight=100))
        assert check_whole([await stand.ask("good", "bad")]) == {2: 1}


async def test_a_model_that_nobody_asks_is_unloaded_and_the_next_request_loads_it(stand: Any) -> None:
    async with stand.running():
        await stand.ready(await stand.deploy(await stand.register(), idle=0.2))
        for _ in range(2):
            unloaded = await stand.unloaded(reason="idle")
            stand.events.remove(unloaded)
            assert check_whole([await stand.ask("good", "bad")]) == {1: 1}


async def test_a_pinned_model_is_neither_idle_nor_makes_room(stand: Any) -> None:
    async with stand.running(memory="190MiB"):
        small = await stand.register(model="a", megabytes=24)
        await stand.ready(await stand.deploy(small, name="a", pinned=True, idle=0.1))
        for name in "bcde":  # they make b go, though a was asked longest ago
            large = await stand.register(model=name, megabytes=64)
            await stand.ready(await stand.deploy(large, name=name))
        await stand.unloaded("b")
        assert (await stand.ask("good", name="a")).version == 1
        ready = [event for event in stand.events if isinstance(event, ReplicaReady) and event.deployment == "a"]
        assert len(ready) == 1
