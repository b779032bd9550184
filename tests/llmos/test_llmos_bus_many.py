"""Many messages at once, and the fence behind which a deposed leader's are refused."""

import asyncio

from llmos.bus import Bus, Conflict, Fence, Message
from llmos.contracts.jobs import JobCancelled
from llmos.contracts.leader import LeaderElected
from llmos.contracts.subjects import event_subject
from llmos.history import read
from llmos.natsserver import NatsServer

ELECTED = event_subject(LeaderElected("", 0))


def facts(bus: Bus, count: int, fence: Fence | None = None) -> list[Message]:
    return [bus.fact(JobCancelled(f"j{number}", "acme"), id=f"f{number}", fence=fence) for number in range(count)]


async def test_many_are_stored_in_their_order(bus: Bus) -> None:
    assert await bus.store_many(facts(bus, 1500)) == list(range(1, 1501))
    assert [heard.envelope.id for heard in await read(bus, "EVENTS", [">"])] == [f"f{n}" for n in range(1500)]


async def test_what_was_stored_before_is_not_stored_again(bus: Bus) -> None:
    await bus.store_many(facts(bus, 3))
    assert await bus.store_many(facts(bus, 5)) == [1, 2, 3, 4, 5]


async def test_each_is_stored_once_though_the_server_dies(bus: Bus, nats_server: NatsServer) -> None:
    storing = asyncio.create_task(bus.store_many(facts(bus, 2000)))
    await asyncio.sleep(0.01)
    await nats_server.kill()
    await nats_server.start()
    async with asyncio.timeout(20):
        sequences = await storing
    stored = [heard.envelope.id for heard in await read(bus, "EVENTS", [">"])]
    assert len(sequences) == len(set(stored)) == len(stored) == 2000


async def test_what_a_deposed_leader_says_is_refused(bus: Bus) -> None:
    first = await bus.emit(LeaderElected("a", 1), id="e1", fence=Fence(ELECTED, 0))
    assert all(isinstance(result, int) for result in await bus.store_many(facts(bus, 3, Fence(ELECTED, first))))
    second = await bus.emit(LeaderElected("b", 2), id="e2", fence=Fence(ELECTED, first))
    late = [bus.fact(JobCancelled("late", "acme"), id=f"late{n}", fence=Fence(ELECTED, first)) for n in range(3)]
    assert [type(result) for result in await bus.store_many(late)] == [Conflict] * 3
    assert await bus.last_sequence("EVENTS") == second


async def test_of_two_who_would_lead_one_is_elected(bus: Bus) -> None:
    votes = [bus.fact(LeaderElected(name, 1), id=name, fence=Fence(ELECTED, 0)) for name in "abcd"]
    results = await asyncio.gather(*(bus.store_many([vote]) for vote in votes))
    assert sorted(type(result).__name__ for (result,) in results) == ["Conflict", "Conflict", "Conflict", "int"]


async def test_a_message_that_the_stream_refuses_does_not_hold_the_others_up(bus: Bus) -> None:
    good, other = facts(bus, 2)
    bad = good._replace(headers={**good.headers, "Nats-Msg-Id": "bad", "Nats-Expected-Stream": "JOBS"})
    first, refused, last = await bus.store_many([good, bad, other])
    assert (first, last) == (1, 2)
    assert "refused" in str(refused)
