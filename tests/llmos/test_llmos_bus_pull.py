"""Taking from a queue: never more than there is room for, never stuck, kept while it waits, given back at the end."""

import asyncio
import random
import time
from contextlib import aclosing

import pytest

from llmos.bus import Bus, Delivery
from llmos.bus import pull as bus_pull
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.inference import InferenceRequested
from llmos.contracts.jobs import JobCancelled
from llmos.natsserver import NatsServer

INFER = subjects.infer_consumer("mood", "interactive")


async def ask(bus: Bus, *numbers: int) -> None:
    for number in numbers:
        await bus.publish(subjects.infer("mood", f"r{number}"), InferenceRequested("c", [str(number)]), type="x")


def number(delivery: Delivery[InferenceRequested]) -> int:
    return int(delivery.body.inputs[0])


async def test_nothing_comes_while_there_is_no_room_and_what_waits_stays_ours(bus: Bus) -> None:
    room = 5
    await ask(bus, *range(5))
    queue = bus.work("INFER", *INFER, InferenceRequested, slots=lambda: room, ack_wait=0.6)
    async with asyncio.timeout(20), aclosing(queue):
        first = await anext(queue)
        await first.ack()
        room = 0
        waiting = asyncio.ensure_future(anext(queue))
        await asyncio.sleep(1.5)
        assert not waiting.done()
        room = 5
        rest = [await waiting, *[await anext(queue) for _ in range(3)]]
        assert [(number(delivery), delivery.deliveries) for delivery in rest] == [(n, 1) for n in range(1, 5)]


async def test_room_that_comes_without_an_ack_is_noticed(bus: Bus) -> None:
    room = 0
    await ask(bus, 1)
    queue = bus.work("INFER", *INFER, InferenceRequested, slots=lambda: room)
    async with asyncio.timeout(5), aclosing(queue):
        waiting = asyncio.ensure_future(anext(queue))
        await asyncio.sleep(0.5)
        room = 1
        began = time.monotonic()
        await waiting
        assert time.monotonic() - began < 0.5


async def test_what_is_owed_is_right_after_requests_end_in_any_order(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests of several sizes are served in turn and expire; every message comes at once, and never too many."""
    monkeypatch.setattr(bus_pull, "EXPIRES_S", 0.5)
    monkeypatch.setattr(bus_pull, "IDLE_HEARTBEAT_S", 0.2)
    chance = random.Random(7)
    open: list[Delivery[InferenceRequested]] = []
    limit, most, sent_at, late = 6, 0, dict[int, float](), list[float]()

    async def take() -> None:
        nonlocal most
        queue = bus.work("INFER", *INFER, InferenceRequested, slots=lambda: limit - len(open))
        async with aclosing(queue):
            async for delivery in queue:
                late.append(time.monotonic() - sent_at[number(delivery)])
                open.append(delivery)
                most = max(most, len(open))
                if chance.random() < 0.8:
                    await open.pop(chance.randrange(len(open))).ack()

    taking = asyncio.create_task(take())
    await asyncio.sleep(0.3)
    for count in range(80):
        while len(open) == limit:
            await open.pop().ack()
            await asyncio.sleep(0.02)
        sent_at[count] = time.monotonic()
        await ask(bus, count)
        await asyncio.sleep(chance.choice([0, 0, 0.01, 0.2]))
    async with asyncio.timeout(5):
        while len(late) < 80:
            for delivery in open:
                await delivery.ack()
            open.clear()
            await asyncio.sleep(0.05)
    await cancel(taking)
    assert most <= limit
    assert max(late) < 0.4, "no message waits for a request to expire"


async def test_a_slow_worker_gets_no_message_twice(bus: Bus) -> None:
    """What it has pulled ahead waits longer than the ack wait."""
    await ask(bus, *range(6))
    seen: list[tuple[int, int]] = []
    async with asyncio.timeout(20):
        async with aclosing(bus.work("INFER", *INFER, InferenceRequested, slots=lambda: 6, ack_wait=0.6)) as queue:
            async for delivery in queue:
                async with delivery.kept_alive():
                    await asyncio.sleep(0.4)
                seen.append((number(delivery), delivery.deliveries))
                await delivery.ack()
                if len(seen) == 6:
                    break
    assert seen == [(n, 1) for n in range(6)]


async def test_workers_that_come_and_go_leave_nothing_behind(bus: Bus) -> None:
    """Whatever the moment in which one leaves: the next message is never stuck until the ack wait is over."""
    taken: list[int] = []
    worst = 0.0
    async with asyncio.timeout(60):
        for turn in range(60):
            queue = bus.work("INFER", *INFER, InferenceRequested, slots=lambda: 4, ack_wait=30, max_deliver=100)
            sending = asyncio.create_task(ask(bus, 2 * turn, 2 * turn + 1))
            began = time.monotonic()
            delivery = await anext(queue)
            worst = max(worst, time.monotonic() - began)
            taken.append(number(delivery))
            await delivery.ack()
            if turn % 3:
                await asyncio.sleep(0.001 * (turn % 7))
            await queue.aclose()
            await sending
        async with aclosing(
            bus.work("INFER", *INFER, InferenceRequested, slots=lambda: 4, ack_wait=30, max_deliver=100)
        ) as queue:
            while len(taken) < 120:
                delivery = await anext(queue)
                taken.append(number(delivery))
                await delivery.ack()
    assert sorted(taken) == list(range(120))
    assert worst < 5


async def test_a_reconnect_keeps_what_was_pulled(bus: Bus, nats_server: NatsServer) -> None:
    await ask(bus, *range(8))
    async with asyncio.timeout(20):
        async with aclosing(bus.work("INFER", *INFER, InferenceRequested, slots=lambda: 8, ack_wait=30)) as queue:
            first = await anext(queue)
            await nats_server.kill()
            await nats_server.start()
            deliveries = [first, *[await anext(queue) for _ in range(7)]]
            for delivery in deliveries:
                await delivery.ack()
    assert sorted(number(delivery) for delivery in deliveries) == list(range(8))


async def test_acks_that_are_said_twice_are_said_once(bus: Bus) -> None:
    await ask(bus, 1)
    async with aclosing(bus.work("INFER", *INFER, InferenceRequested, slots=lambda: 1)) as queue:
        delivery = await anext(queue)
        await delivery.ack()
        await delivery.ack()
        await delivery.nak()
        await delivery.dead("no")
    assert await bus.last_sequence("DEAD") == 0


async def test_cancelling_at_any_moment_leaves_the_bus_whole(bus: Bus) -> None:
    """Every verb, cancelled after any number of turns of the loop."""
    models = bus.bucket("models")
    await models.put("m", 1)

    async def work() -> None:
        async with aclosing(
            bus.work("INFER", *INFER, InferenceRequested, slots=lambda: 2, max_deliver=10_000)
        ) as queue:
            async for delivery in queue:
                await delivery.ack()

    async def follow() -> None:
        async with aclosing(bus.follow("EVENTS")) as events:
            async for _ in events:
                pass

    async def call() -> None:
        await bus.call("scheduler", "jobs", subjects.find_call("scheduler", "jobs").request(), timeout=5)

    verbs = [
        work,
        follow,
        call,
        lambda: ask(bus, 0),
        lambda: models.put("m", 2),
        lambda: models.get("m", int),
        models.keys,
    ]
    async with asyncio.timeout(60):
        idle = asyncio.all_tasks()
        subscriptions = len(bus._nc._subs)
        for verb in verbs:
            for turns in range(0, 60, 2):
                task = asyncio.ensure_future(verb())  # type: ignore[arg-type]
                for _ in range(turns):
                    await asyncio.sleep(0)
                await cancel(task)
        await asyncio.sleep(0.2)
        assert asyncio.all_tasks() == idle
        assert len(bus._nc._subs) == subscriptions
        assert bus._nc._resp_map == {}
        assert bus._asking._waiting == {}
        assert not bus._pulls
        await ask(bus, 1)
        assert await models.keys() == ["m"]


async def test_a_follower_whose_consumer_is_made_anew_hears_on(bus: Bus) -> None:
    """Its own deletion of the old consumer ends the requests that were posted there: that is no loss of the new one."""
    follower = bus.follow("EVENTS")
    heard: list[int] = []
    async with asyncio.timeout(10), aclosing(follower):
        for number in range(1, 6):
            await bus.emit(JobCancelled(f"j{number}", "acme"))
            heard.append((await anext(follower)).sequence)
            for pull in bus._pulls:
                pull.reset()
            await bus.emit(JobCancelled(f"k{number}", "acme"))
            heard.append((await anext(follower)).sequence)
    assert heard == list(range(1, 11))
