"""Questions and answers when something is lost on the way, asked twice, takes long, or can't be said."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from llmos.bus import Bus
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.envelope import Envelope
from llmos.contracts.inference import InferenceAnswered, InferenceRequested
from llmos.contracts.jobs import JobList, JobsRequested, JobView
from llmos.errors import Busy, LlmosError, Rejected
from llmos.natsserver import NatsServer
from llmos.testing.cable import Cable, cable


@pytest.fixture
async def line(nats_server: NatsServer) -> AsyncIterator[Cable]:
    async with cable(nats_server.url) as line:
        yield line


@pytest.fixture
async def asker(line: Cable) -> AsyncIterator[Bus]:
    """A bus at the end of a cable."""
    bus = await Bus.connect(line.url, source="asker/far")
    yield bus
    await bus.close()


class Scheduler:
    """Answers `jobs`; counts how often it began."""

    def __init__(self) -> None:
        self.began = 0
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def jobs(self, request: JobsRequested, envelope: Envelope) -> JobList:
        self.began += 1
        self.asked.set()
        await self.may_answer.wait()
        return JobList([JobView(str(self.began), "n", "acme", "default", "queued", 50, 1.0)])


async def test_an_answer_that_was_said_while_the_asker_was_away_is_found(bus: Bus, asker: Bus, line: Cable) -> None:
    scheduler = Scheduler()
    scheduler.may_answer.clear()
    serving = asyncio.create_task(bus.serve("scheduler", {"jobs": scheduler.jobs}))
    async with asyncio.timeout(15):
        asking = asyncio.create_task(asker.call("scheduler", "jobs", JobsRequested(), timeout=10))
        await scheduler.asked.wait()
        line.cut()
        scheduler.may_answer.set()
        await asyncio.sleep(0.5)
        line.plug()
        assert (await asking).jobs[0].job == "1"
    assert scheduler.began == 1
    await cancel(serving)


async def test_a_question_that_died_with_the_server_is_asked_again(
    bus: Bus, nats_server: NatsServer, nats_url: str
) -> None:
    scheduler = Scheduler()
    async with asyncio.timeout(15):
        asking = asyncio.create_task(bus.call("scheduler", "jobs", JobsRequested(), timeout=10))
        while await bus.last_sequence("CALL") == 0:
            await asyncio.sleep(0.02)
        await nats_server.kill()
        await nats_server.start()
        other = await Bus.connect(nats_url, source="scheduler/n1")
        serving = asyncio.create_task(other.serve("scheduler", {"jobs": scheduler.jobs}))
        assert (await asking).jobs[0].job == "1"
    await cancel(serving)
    await other.close()


async def test_a_call_during_a_restart_is_answered(bus: Bus, nats_server: NatsServer) -> None:
    scheduler = Scheduler()
    serving = asyncio.create_task(bus.serve("scheduler", {"jobs": scheduler.jobs}))
    await bus.call("scheduler", "jobs", JobsRequested())
    async with asyncio.timeout(20):
        for _ in range(3):
            asking = [asyncio.create_task(bus.call("scheduler", "jobs", JobsRequested(), timeout=10)) for _ in range(8)]
            await asyncio.sleep(0.002)
            await nats_server.kill()
            await nats_server.start()
            await asyncio.gather(*asking)
    await cancel(serving)


async def test_one_question_that_is_asked_twice_is_answered_twice(bus: Bus) -> None:
    """At the same time, and again after it was answered."""

    async def answer() -> None:
        consumer, filter = subjects.infer_consumer("mood", "interactive")
        async for delivery in bus.work("INFER", consumer, filter, InferenceRequested, slots=lambda: 4):
            await asyncio.sleep(0.2)
            said = InferenceAnswered(id="r", model="mood", version=1, node="n")
            await bus.tell(subjects.reply(bus.client, "r"), said, type="llmos.inference.answered.v1")
            await delivery.ack()

    async def ask(timeout: float) -> InferenceAnswered:
        return await bus.ask(
            subjects.infer("mood", "r"),
            InferenceRequested(bus.client, ["x"]),
            type="llmos.inference.requested.v1",
            id="r",
            answer=InferenceAnswered,
            timeout=timeout,
        )

    answering = asyncio.create_task(answer())
    async with asyncio.timeout(10):
        impatient = asyncio.create_task(ask(0.1))
        first, second = await asyncio.gather(ask(5), ask(5))
        assert first == second
        assert await ask(5) == first
        with pytest.raises(TimeoutError):
            await impatient
    assert await bus.last_sequence("INFER") == 1
    assert bus._asking._waiting == {}
    await cancel(answering)


async def test_a_handlers_own_key_error_is_not_an_unknown_verb(bus: Bus, capsys: pytest.CaptureFixture[str]) -> None:
    async def jobs(request: JobsRequested, envelope: Envelope) -> JobList:
        raise KeyError("lost")

    serving = asyncio.create_task(bus.serve("scheduler", {"jobs": jobs}))
    with pytest.raises(LlmosError, match=r"scheduler.jobs failed: 'lost'") as caught:
        await bus.call("scheduler", "jobs", JobsRequested())
    assert caught.value.problem.code == "error"
    assert "Traceback" in capsys.readouterr().out
    with pytest.raises(LlmosError, match="does not know 'nodes'"):
        await bus.call("scheduler", "nodes", subjects.find_call("scheduler", "nodes").request())
    await cancel(serving)


async def test_an_answer_too_large_for_the_bus_is_an_error_at_the_asker(bus: Bus) -> None:
    async def jobs(request: JobsRequested, envelope: Envelope) -> JobList:
        return JobList([JobView("j" * 600_000, "n", "acme", "default", "queued", 50, 1.0)])

    serving = asyncio.create_task(bus.serve("scheduler", {"jobs": jobs}))
    with pytest.raises(Rejected, match="too large"):
        await bus.call("scheduler", "jobs", JobsRequested())
    await cancel(serving)


@pytest.mark.parametrize("client", ["", "no token!", "a.b"])
async def test_a_question_that_nobody_can_be_answered_is_worked_on_once(bus: Bus, client: str) -> None:
    scheduler = Scheduler()
    serving = asyncio.create_task(bus.serve("scheduler", {"jobs": scheduler.jobs}, ack_wait=0.3))
    await bus.publish(
        subjects.call("scheduler", "jobs", "q"), JobsRequested(), type="x", headers={"ce-replyto": client}
    )
    await asyncio.sleep(1)
    assert scheduler.began == 1
    await cancel(serving)


async def test_a_question_that_takes_longer_than_the_ack_wait_is_worked_on_once(bus: Bus) -> None:
    scheduler = Scheduler()
    scheduler.may_answer.clear()
    serving = asyncio.create_task(bus.serve("scheduler", {"jobs": scheduler.jobs}, ack_wait=0.4))
    asking = asyncio.create_task(bus.call("scheduler", "jobs", JobsRequested()))
    await asyncio.sleep(1.5)
    scheduler.may_answer.set()
    await asking
    assert scheduler.began == 1
    await cancel(serving)


async def test_what_a_leaving_service_has_begun_is_answered_by_another_at_once(bus: Bus) -> None:
    first, second = Scheduler(), Scheduler()
    first.may_answer.clear()
    serving = asyncio.create_task(bus.serve("scheduler", {"jobs": first.jobs}))
    began = time.monotonic()
    asking = asyncio.create_task(bus.call("scheduler", "jobs", JobsRequested()))
    await first.asked.wait()
    await cancel(serving)
    serving = asyncio.create_task(bus.serve("scheduler", {"jobs": second.jobs}))
    await asking
    assert second.began == 1
    assert time.monotonic() - began < 3
    await cancel(serving)


async def test_many_calls_at_once_are_all_answered(bus: Bus) -> None:
    """More than are served at a time."""
    scheduler = Scheduler()
    serving = asyncio.create_task(bus.serve("scheduler", {"jobs": scheduler.jobs}, at_once=4))
    async with asyncio.timeout(20):
        await asyncio.gather(*(bus.call("scheduler", "jobs", JobsRequested(), timeout=15) for _ in range(200)))
    assert scheduler.began == 200
    await cancel(serving)


async def test_an_answer_that_can_not_be_read_is_an_error(bus: Bus) -> None:
    asking = asyncio.create_task(bus.call("scheduler", "jobs", JobsRequested()))
    while not bus._asking._waiting:
        await asyncio.sleep(0.01)
    (id,) = bus._asking._waiting
    await bus.store(subjects.reply(bus.client, id), b"nonsense", {})
    with pytest.raises(LlmosError, match="can't be read"):
        await asking


async def test_nobody_to_answer_is_busy_in_time(bus: Bus) -> None:
    began = time.monotonic()
    with pytest.raises(Busy, match="did not answer jobs within"):
        await bus.call("scheduler", "jobs", JobsRequested(), timeout=0.3)
    assert time.monotonic() - began < 1
