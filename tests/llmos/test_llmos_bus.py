"""The bus on a real nats-server: what is said is heard once and in order, also across kills of the server."""

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest

from llmos.bus import Bus, Conflict
from llmos.contracts import subjects
from llmos.contracts.dead import DeadLetter
from llmos.contracts.envelope import Envelope
from llmos.contracts.jobs import JobCancelled, JobList, JobsRequested, JobView
from llmos.contracts.tasks import TaskAssigned, TaskStopRequested
from llmos.errors import Busy, NotFound, Rejected
from llmos.natsserver import NatsServer
from llmos.supervisor import free_port
from llmos.testing.nats import NatsContainer, missing_container


@pytest.fixture(params=["process", pytest.param("container", marks=pytest.mark.docker)])
async def nats_server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[NatsServer | NatsContainer]:
    """A nats-server of the test's own, as a process and, where a Docker engine answers, in a container."""
    server: NatsServer | NatsContainer = NatsServer(tmp_path / "nats")
    if request.param == "container":
        if reason := missing_container():
            pytest.skip(reason)
        server = NatsContainer(free_port())
    await server.start()
    yield server
    await server.stop()


async def take(bus: Bus, count: int, *filters: str, start: int = 1) -> list[str]:
    """Ids of the first `count` events."""
    heard: list[str] = []
    async with asyncio.timeout(20), aclosing(bus.follow("EVENTS", filters, start=start)) as events:
        async for message in events:
            heard.append(message.event().job)  # type: ignore[union-attr]
            if len(heard) == count:
                break
    return heard


async def test_an_event_is_heard_with_its_envelope(bus: Bus) -> None:
    sequence = await bus.emit(JobCancelled("j1", "acme"), id="j1.cancelled", cause="c0", traceparent="00-aa-bb-01")
    async with asyncio.timeout(5), aclosing(bus.follow("EVENTS")) as events:
        heard = await anext(events)
    assert heard.sequence == sequence == 1
    assert heard.subject == "llmos.evt.job.cancelled.acme.j1"
    assert heard.event() == JobCancelled("j1", "acme")
    assert heard.headers["ce-specversion"] == "1.0"
    envelope = heard.envelope
    assert (envelope.id, envelope.cause, envelope.traceparent) == ("j1.cancelled", "c0", "00-aa-bb-01")
    assert (envelope.type, envelope.source) == ("llmos.job.cancelled.v1", "llmos/test/node")


async def test_an_id_that_is_published_twice_is_stored_once(bus: Bus) -> None:
    first = await bus.emit(JobCancelled("j1", "acme"), id="x")
    again = await bus.emit(JobCancelled("j1", "acme"), id="x")
    assert first == again
    assert await bus.last_sequence("EVENTS") == 1


async def test_followers_hear_everything_in_order_across_a_killed_server(bus: Bus, nats_server: NatsServer) -> None:
    total = 60
    follower = asyncio.create_task(take(bus, total))
    for number in range(total):
        await bus.emit(JobCancelled(f"j{number}", "acme"), id=f"j{number}")
        if number in (20, 40):
            await nats_server.kill()
            await nats_server.start()
    assert await follower == [f"j{number}" for number in range(total)]


async def test_a_filter_selects_facts_and_a_start_skips(bus: Bus) -> None:
    for number in range(5):
        await bus.emit(JobCancelled(f"j{number}", "even" if number % 2 == 0 else "odd"))
    assert await take(bus, 3, "llmos.evt.job.*.even.*") == ["j0", "j2", "j4"]
    assert await take(bus, 2, start=4) == ["j3", "j4"]


async def test_work_is_redelivered_until_acked_and_not_after(bus: Bus) -> None:
    subject = subjects.control_stop("t")
    assert subject == "llmos.ctl.stop.t"
    for number in range(3):
        await bus.publish(
            subjects.call("audit", "checkpoint", f"q{number}"), TaskStopRequested(f"t{number}", 1), type="x"
        )
    seen: list[tuple[str, int]] = []
    async with asyncio.timeout(20):
        async for delivery in bus.work(
            "CALL", "audit", "llmos.call.audit.*.*", TaskStopRequested, slots=lambda: 2, ack_wait=1.0
        ):
            seen.append((delivery.body.task, delivery.deliveries))
            if delivery.body.task == "t1" and delivery.deliveries == 1:
                continue  # a crashed worker
            await delivery.ack()
            if len(seen) == 4:
                break
    assert seen[:3] == [("t0", 1), ("t1", 1), ("t2", 1)]
    assert seen[3] == ("t1", 2)


async def test_kept_alive_work_is_not_redelivered(bus: Bus) -> None:
    await bus.publish(subjects.call("audit", "checkpoint", "q"), TaskStopRequested("t", 1), type="x")
    work = bus.work("CALL", "audit", "llmos.call.audit.*.*", TaskStopRequested, slots=lambda: 1, ack_wait=0.6)
    async with asyncio.timeout(10):
        delivery = await anext(work)
        async with delivery.kept_alive():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(work), 2)
        await delivery.ack()


@pytest.mark.parametrize("payload", [b"not json", b"{}", b'{"task": 7}', b"\xff\xfe"])
async def test_poison_is_kept_in_dead_with_its_payload(bus: Bus, payload: bytes) -> None:
    subject = subjects.work("train", "n1", "t1")
    await bus.store(subject, payload, {"Nats-Msg-Id": "poison", "x-note": "kept"})
    consumer, filter = subjects.work_consumer("train", "n1")

    async def worker() -> None:
        async for _ in bus.work("WORK", consumer, filter, TaskAssigned, slots=lambda: 1):
            pytest.fail("poison was delivered")

    task = asyncio.create_task(worker())
    async with asyncio.timeout(5), aclosing(bus.follow("DEAD")) as dead:
        letter = msgspec.json.decode((await anext(dead)).data, type=DeadLetter)
    task.cancel()
    assert base64.b64decode(letter.data) == payload
    assert (letter.stream, letter.subject, letter.headers["x-note"]) == ("WORK", subject, "kept")
    await bus.store(letter.subject, base64.b64decode(letter.data), {"Nats-Msg-Id": "replayed"})


async def test_work_that_is_never_finished_ends_in_dead(bus: Bus) -> None:
    await bus.publish(subjects.call("audit", "checkpoint", "q"), TaskStopRequested("t", 1), type="x")
    work = bus.work("CALL", "audit", "llmos.call.audit.*.*", TaskStopRequested, slots=lambda: 1, max_deliver=2)
    async with asyncio.timeout(10):
        for _ in range(2):
            await (await anext(work)).nak()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(work), 2)
        async with aclosing(bus.follow("DEAD")) as dead:
            assert "2 times" in msgspec.json.decode((await anext(dead)).data, type=DeadLetter).reason


async def test_a_call_is_answered_and_an_error_is_raised_at_the_asker(bus: Bus, nats_url: str) -> None:
    async def jobs(request: JobsRequested, envelope: Envelope) -> JobList:
        assert envelope.source == "llmos/test/node"
        if request.tenant == "none":
            raise NotFound("no such tenant", remedy="Name another.")
        if request.tenant == "bug":
            raise ZeroDivisionError("oops")
        return JobList([JobView("j1", "n", "acme", "default", "queued", 50, 1.0)])

    async with asyncio.timeout(20):
        server = await Bus.connect(nats_url, source="scheduler/n1")
        task = asyncio.create_task(server.serve("scheduler", {"jobs": jobs}))
        assert (await bus.call("scheduler", "jobs", JobsRequested())).jobs[0].job == "j1"
        with pytest.raises(NotFound, match="no such tenant"):
            await bus.call("scheduler", "jobs", JobsRequested("none"))
        with pytest.raises(Exception, match="oops"):
            await bus.call("scheduler", "jobs", JobsRequested("bug"))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        with pytest.raises(Busy, match="scheduler did not answer"):
            await bus.call("scheduler", "jobs", JobsRequested(), timeout=0.3)
        await server.close()


async def test_calls_work_again_after_the_server_lost_its_memory_streams(bus: Bus, nats_server: NatsServer) -> None:
    async def jobs(request: JobsRequested, envelope: Envelope) -> JobList:
        return JobList()

    task = asyncio.create_task(bus.serve("scheduler", {"jobs": jobs}))
    assert await bus.call("scheduler", "jobs", JobsRequested()) == JobList()
    await nats_server.kill()
    await nats_server.start()
    assert await bus.call("scheduler", "jobs", JobsRequested(), timeout=10) == JobList()
    task.cancel()


async def test_a_bucket_has_one_winner(bus: Bus) -> None:
    models = bus.bucket("models")
    assert await models.get("m", str) is None
    revision = await models.create("m", "one")
    with pytest.raises(Conflict):
        await models.create("m", "other")

    async def write(value: str) -> bool:
        try:
            await models.update("m", value, revision)
        except Conflict:
            return False
        return True

    assert sum(await asyncio.gather(*(write(f"v{n}") for n in range(16)))) == 1
    entry = await models.get("m", str)
    assert entry is not None
    assert entry.value.startswith("v")
    await models.delete("m")
    assert await models.get("m", str) is None
    assert await models.keys() == []


async def test_a_watch_shows_what_is_there_and_what_comes(bus: Bus) -> None:
    nodes = bus.bucket("nodes")
    await nodes.put("a.x", 1)
    await nodes.put("a.x", 2)
    async with asyncio.timeout(5), aclosing(nodes.watch(int)) as watch:
        assert await anext(watch) == ("a.x", 2)
        await nodes.put("b.y", 3)
        assert await anext(watch) == ("b.y", 3)
        await nodes.delete("a.x")
        assert await anext(watch) == ("a.x", None)


async def test_a_message_that_is_too_large_is_refused_with_the_remedy(bus: Bus) -> None:
    with pytest.raises(Rejected, match="artifact store"):
        await bus.publish(subjects.call("audit", "prove", "q"), TaskStopRequested("t", 1, "a" * 600_000), type="x")


async def test_no_server_is_an_error_with_the_remedy() -> None:
    with pytest.raises(Busy, match="llmos up"):
        await Bus.connect("nats://127.0.0.1:9", source="test/x", within=1)
