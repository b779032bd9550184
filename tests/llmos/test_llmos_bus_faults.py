"""The bus when things break: servers that die or stall, cut connections, deleted streams, poison, full queues."""

import asyncio
import base64
import json
import os
import signal
import time
from contextlib import aclosing

import msgspec
import pytest

from llmos.bus import Bus, api
from llmos.bus import work as bus_work
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.dead import DeadLetter
from llmos.contracts.inference import InferenceRequested
from llmos.contracts.jobs import JobCancelled
from llmos.contracts.tasks import TaskAssigned, TaskStopRequested
from llmos.errors import Busy, LlmosError, Rejected
from llmos.natsserver import NatsServer
from llmos.testing.cable import cable

STOPS = "CONTROL"  # a stream in memory
INFER = subjects.infer_consumer("mood", "interactive")
QUESTION = InferenceRequested("c", ["x"])


async def stop_requested(bus: Bus, number: int) -> None:
    await bus.publish(subjects.control_stop(f"t{number}"), TaskStopRequested(f"t{number}", 1), type="x")


async def say(url: str, *commands: bytes) -> None:
    """Speak to the server as any program may."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    await reader.readline()
    writer.write(b'CONNECT {"verbose":false,"headers":true}\r\n' + b"".join(commands) + b"PING\r\n")
    assert await reader.readline() == b"PONG\r\n"
    writer.close()


# --- poison ---


async def test_a_subject_that_is_no_text_makes_nobody_deaf(bus: Bus, nats_url: str) -> None:
    await say(
        nats_url, b"PUB llmos.job.submit.acme.\xff\xfe 2\r\n{}\r\n", b"PUB llmos.evt.job.admitted.a.\xff 2\r\n{}\r\n"
    )
    await bus.store("llmos.job.submit.acme.good", b"{}", {"Nats-Msg-Id": "good"})
    await bus.emit(JobCancelled("good", "acme"))
    async with asyncio.timeout(10):
        async with aclosing(bus.work("JOBS", "scheduler", "llmos.job.submit.*.*", bytes, slots=lambda: 8)) as jobs:
            assert (await anext(jobs)).subject == "llmos.job.submit.acme.good"
        async with aclosing(bus.follow("DEAD")) as dead:
            assert "UTF-8" in msgspec.json.decode((await anext(dead)).data, type=DeadLetter).reason
        async with aclosing(bus.follow("EVENTS")) as events:
            assert (await anext(events)).event() is None
            assert (await anext(events)).event() == JobCancelled("good", "acme")


async def test_a_message_too_large_for_dead_is_ended_and_named_there(bus: Bus, nats_url: str) -> None:
    payload = b"{" * 1_000_000
    await say(nats_url, b"PUB llmos.work.train.n1.t 1000000\r\n" + payload + b"\r\n")
    await bus.publish(subjects.control_stop("t"), TaskStopRequested("t", 1), type="x")
    consumer, filter = subjects.work_consumer("train", "n1")
    await bus.store(subjects.work("train", "n1", "t2"), b"{}", {"Nats-Msg-Id": "small"})
    async with asyncio.timeout(10), aclosing(bus.follow("DEAD")) as dead:
        task = asyncio.create_task(
            anext(bus.work("WORK", consumer, filter, TaskAssigned, slots=lambda: 2), None)  # type: ignore[arg-type]
        )
        letters = [msgspec.json.decode((await anext(dead)).data, type=DeadLetter) for _ in range(2)]
    await cancel(task)
    assert "1000000 bytes" in letters[0].reason
    assert base64.b64decode(letters[1].data) == b"{}"


async def test_a_message_that_looks_like_a_status_is_delivered(bus: Bus) -> None:
    await bus.store(subjects.infer("mood", "r"), b"", {"Status": "408", "Nats-Pending-Messages": "7"})
    async with asyncio.timeout(5), aclosing(bus.work("INFER", *INFER, bytes, slots=lambda: 1)) as queue:
        assert (await anext(queue)).headers["Status"] == "408"


async def test_what_comes_too_often_while_dead_is_full_comes_again(bus: Bus, monkeypatch: pytest.MonkeyPatch) -> None:
    await bus.store(subjects.work("train", "n1", "t"), b"bad", {"Nats-Msg-Id": "bad"})
    config = (await api.request(bus._nc, "STREAM.INFO.DEAD"))["config"]
    await api.request(bus._nc, "STREAM.UPDATE.DEAD", config | {"discard": "new", "max_msgs": 0, "max_bytes": 1})
    consumer, filter = subjects.work_consumer("train", "n1")
    queue = bus.work("WORK", consumer, filter, TaskAssigned, slots=lambda: 1, ack_wait=0.5)
    task = asyncio.ensure_future(anext(queue))
    await asyncio.sleep(1)
    assert not task.done()
    await api.request(bus._nc, "STREAM.UPDATE.DEAD", config)
    async with asyncio.timeout(5), aclosing(bus.follow("DEAD")) as dead:
        await anext(dead)
    await cancel(task)


# --- streams and consumers that vanish ---


async def test_a_stream_made_anew_is_followed_from_its_beginning(bus: Bus, nats_server: NatsServer) -> None:
    """Also when it already holds more than was heard of the old one."""
    for number in range(3):
        await stop_requested(bus, number)
    async with asyncio.timeout(20), aclosing(bus.follow(STOPS)) as stops:
        assert [(await anext(stops)).sequence for _ in range(3)] == [1, 2, 3]
        await nats_server.kill()
        await nats_server.start()
        for number in range(10, 16):
            await stop_requested(bus, number)
        heard = [(await anext(stops)).subject for _ in range(6)]
    assert heard == [subjects.control_stop(f"t{number}") for number in range(10, 16)]


async def test_a_follower_of_what_is_new_hears_the_beginning_of_a_stream_made_anew(
    bus: Bus, nats_server: NatsServer
) -> None:
    for number in range(5):
        await stop_requested(bus, number)
    async with asyncio.timeout(20), aclosing(bus.follow(STOPS, start=0)) as stops:
        first = asyncio.ensure_future(anext(stops))
        await asyncio.sleep(0.3)
        await nats_server.kill()
        await nats_server.start()
        await stop_requested(bus, 7)
        assert (await first).subject == subjects.control_stop("t7")


async def test_the_newest_of_each_subject_is_heard_again_from_a_stream_made_anew(
    bus: Bus, nats_server: NatsServer
) -> None:
    async with asyncio.timeout(20), aclosing(bus.follow(STOPS, last_per_subject=True)) as stops:
        for subject in (1, 2, 1):
            await stop_requested(bus, subject)
        heard = [(await anext(stops)).sequence for _ in range(2)]
        assert heard in ([2, 3], [1, 2])
        await nats_server.kill()
        await nats_server.start()
        for subject in (4, 4, 5, 6):
            await stop_requested(bus, subject)
        wanted = [subjects.control_stop(f"t{n}") for n in (4, 5, 6)]
        again: list[str] = []
        while not again or again[-1] != wanted[-1]:
            again.append((await anext(stops)).subject)
    assert set(again) == set(wanted)


@pytest.mark.parametrize("stream", ["CONTROL", "EVENTS"])
async def test_a_follower_survives_the_removal_of_its_consumer_and_of_its_stream(bus: Bus, stream: str) -> None:
    async def publish(number: int) -> None:
        if stream == "CONTROL":
            await stop_requested(bus, number)
        else:
            await bus.emit(JobCancelled(f"t{number}", "a"))

    await publish(0)
    async with asyncio.timeout(20), aclosing(bus.follow(stream)) as heard:
        assert (await anext(heard)).sequence == 1
        for name in (await api.request(bus._nc, f"CONSUMER.NAMES.{stream}"))["consumers"]:
            await api.request(bus._nc, f"CONSUMER.DELETE.{stream}.{name}")
        await publish(1)
        assert (await anext(heard)).sequence == 2
        await api.request(bus._nc, f"STREAM.DELETE.{stream}")
        await publish(2)
        assert (await anext(heard)).sequence == 1


async def test_a_worker_survives_the_removal_of_its_consumer_and_of_its_stream(bus: Bus) -> None:
    async with asyncio.timeout(20), aclosing(bus.work("INFER", *INFER, bytes, slots=lambda: 4)) as queue:
        for number, verb in enumerate(["", f"CONSUMER.DELETE.INFER.{INFER[0]}", "STREAM.DELETE.INFER"]):
            waiting = asyncio.ensure_future(anext(queue))
            await asyncio.sleep(0.2)
            if verb:
                await api.request(bus._nc, verb)
            await bus.publish(subjects.infer("mood", f"r{number}"), QUESTION, type="x")
            delivery = await waiting
            assert delivery.subject.endswith(f".r{number}")
            await delivery.ack()


# --- servers that die or stall ---


async def test_ten_thousand_events_are_heard_once_and_in_order_across_a_kill(
    bus: Bus, nats_server: NatsServer, nats_url: str
) -> None:
    total = 10_000
    follower = await Bus.connect(nats_url, source="follower/n")
    heard: list[int] = []

    async def follow() -> None:
        async with aclosing(follower.follow("EVENTS")) as events:
            async for message in events:
                heard.append(message.sequence)
                if message.sequence == total:
                    return

    async with asyncio.timeout(60):
        task = asyncio.create_task(follow())
        gate = asyncio.Semaphore(200)

        async def emit(number: int) -> None:
            async with gate:
                await bus.emit(JobCancelled(f"j{number}", "acme"), id=f"j{number}")

        emitting = asyncio.gather(*(emit(number) for number in range(total)))
        while len(heard) < total // 3:
            await asyncio.sleep(0.01)
        await nats_server.kill()
        await nats_server.start()
        await emitting
        await task
    assert heard == list(range(1, total + 1))
    await follower.close()


async def test_an_outage_is_survived_by_everything_that_waits(
    bus: Bus, nats_server: NatsServer, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Publishing, reading, working and following wait for the bus, and it is said twice in all."""
    async with asyncio.timeout(30), aclosing(bus.work("INFER", *INFER, bytes, slots=lambda: 64)) as queue:
        first = asyncio.ensure_future(anext(queue))
        await asyncio.sleep(0.2)
        await nats_server.kill()
        capsys.readouterr()
        big = InferenceRequested("c", ["x" * 300_000])
        sent = [
            asyncio.create_task(bus.publish(subjects.infer("mood", f"r{n}"), big, type="x", id=f"r{n}"))
            for n in range(20)
        ]
        await asyncio.sleep(3)
        assert bus._nc._pending_data_size < 1_000_000, "a message is not buffered again with every attempt"
        await nats_server.start()
        assert sorted(await asyncio.gather(*sent)) == list(range(1, 21))
        deliveries = [await first, *[await anext(queue) for _ in range(19)]]
    assert len({delivery.subject for delivery in deliveries}) == 20
    assert {delivery.deliveries for delivery in deliveries} == {1}
    assert caplog.records == []
    assert capsys.readouterr().out.count("\n") <= 3


async def test_a_server_that_stalls_loses_nothing_and_doubles_nothing(bus: Bus, nats_server: NatsServer) -> None:
    async with asyncio.timeout(30), aclosing(bus.follow("EVENTS")) as events:
        await bus.emit(JobCancelled("j0", "a"))
        await anext(events)
        os.kill(nats_server.pid, signal.SIGSTOP)
        sending = [asyncio.create_task(bus.emit(JobCancelled(f"j{n}", "a"), id=f"j{n}")) for n in range(1, 4)]
        await asyncio.sleep(3)
        os.kill(nats_server.pid, signal.SIGCONT)
        assert sorted(await asyncio.gather(*sending)) == [2, 3, 4]
        assert [(await anext(events)).sequence for _ in range(3)] == [2, 3, 4]


async def test_a_publish_whose_ack_was_lost_is_stored_once(nats_server: NatsServer) -> None:
    async with asyncio.timeout(20), cable(nats_server.url) as line:
        bus = await Bus.connect(line.url, source="far/n")
        line.deaf = True
        sending = asyncio.create_task(bus.emit(JobCancelled("j", "a"), id="j"))
        await asyncio.sleep(0.5)
        line.cut()
        line.deaf = False
        line.plug()
        assert await sending == 1
        assert await bus.last_sequence("EVENTS") == 1
        await bus.close()


async def test_a_bucket_write_whose_ack_was_lost_counts_once(nats_server: NatsServer) -> None:
    async with asyncio.timeout(20), cable(nats_server.url) as line:
        bus = await Bus.connect(line.url, source="far/n")
        models = bus.bucket("models")
        revision = await models.create("m", 1)
        line.deaf = True
        writing = asyncio.create_task(models.update("m", 2, revision))
        await asyncio.sleep(0.5)
        line.cut()
        line.deaf = False
        line.plug()
        assert await writing == revision + 1
        await bus.close()


async def test_an_ack_that_is_said_while_the_bus_is_away_arrives_later(nats_server: NatsServer) -> None:
    async with asyncio.timeout(20), cable(nats_server.url) as line:
        bus = await Bus.connect(line.url, source="far/n")
        await bus.publish(subjects.infer("mood", "r"), QUESTION, type="x")
        async with aclosing(bus.work("INFER", *INFER, bytes, slots=lambda: 1, ack_wait=1)) as queue:
            delivery = await anext(queue)
            line.cut()
            await asyncio.sleep(0.1)
            await delivery.ack()
            line.plug()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(2.5):
                    await anext(queue)
        await bus.close()


# --- refusals ---


async def test_a_full_queue_says_so_at_once(bus: Bus) -> None:
    config = (await api.request(bus._nc, "STREAM.INFO.INFER"))["config"]
    await api.request(bus._nc, "STREAM.UPDATE.INFER", config | {"max_msgs": 2})
    began = time.monotonic()
    for number in range(2):
        await bus.publish(subjects.infer("mood", f"r{number}"), QUESTION, type="x")
    with pytest.raises(Busy, match="is full"):
        await bus.ask(subjects.infer("mood", "r"), QUESTION, type="x", id="r", answer=InferenceRequested, timeout=20)
    assert time.monotonic() - began < 3


async def test_what_a_stream_refuses_for_good_is_rejected(bus: Bus) -> None:
    with pytest.raises(Rejected, match="TTL"):
        await bus.publish(subjects.control_stop("t"), TaskStopRequested("t", 1), type="x", ttl=5)


async def test_a_message_outlives_its_ttl_by_little(bus: Bus) -> None:
    await bus.publish(subjects.infer("mood", "r"), QUESTION, type="x", ttl=1)
    await asyncio.sleep(2.2)
    async with aclosing(bus.work("INFER", *INFER, bytes, slots=lambda: 1)) as queue:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await anext(queue)


async def test_a_consumer_that_can_not_be_made_is_said_once(bus: Bus, capsys: pytest.CaptureFixture[str]) -> None:
    """Two consumers of a work queue may not overlap."""
    async with aclosing(bus.work("INFER", *INFER, bytes, slots=lambda: 1)) as queue:
        first = asyncio.ensure_future(anext(queue))
        await asyncio.sleep(0.2)
        second = asyncio.ensure_future(anext(bus.work("INFER", "other", INFER[1], bytes, slots=lambda: 1)))
        await asyncio.sleep(1.5)
        await cancel(first, second)
    assert capsys.readouterr().out.count("nothing can be heard") == 1


async def test_a_consumer_takes_new_settings(bus: Bus) -> None:
    for ack_wait in (30.0, 0.5):
        await bus.publish(subjects.infer("mood", f"r{ack_wait:.0f}"), QUESTION, type="x")
        async with (
            asyncio.timeout(5),
            aclosing(bus.work("INFER", *INFER, bytes, slots=lambda: 1, ack_wait=ack_wait)) as q,
        ):
            delivery = await anext(q)
            await delivery.ack()
    info = await api.request(bus._nc, f"CONSUMER.INFO.INFER.{INFER[0]}")
    assert info["config"]["ack_wait"] == 500_000_000
    assert info["config"]["inactive_threshold"] == bus_work.FORGET_AFTER_S * 1e9


# --- connections that can't be made, or are closed ---


async def test_a_connection_that_fails_leaves_nothing_behind(nats_server: NatsServer) -> None:
    before = asyncio.all_tasks()
    with pytest.raises(Busy):
        await Bus.connect("nats://127.0.0.1:9", source="test/x", within=0.5)
    with pytest.raises(LlmosError, match="credentials"):
        await Bus.connect(nats_server.url, source="test/x", credentials="/nowhere/user.creds")
    connecting = asyncio.create_task(Bus.connect(nats_server.url, source="test/x"))
    await asyncio.sleep(0.005)
    await cancel(connecting)
    os.kill(nats_server.pid, signal.SIGSTOP)
    with pytest.raises(Busy) as stalled:
        await Bus.connect(nats_server.url.replace("//", "//user:secret@"), source="test/x", within=0.5)
    os.kill(nats_server.pid, signal.SIGCONT)
    assert "secret" not in str(stalled.value)
    await asyncio.sleep(0.1)
    assert asyncio.all_tasks() == before


async def test_everything_raises_busy_on_a_closed_connection(nats_url: str) -> None:
    bus = await Bus.connect(nats_url, source="test/x")
    await bus.publish(subjects.infer("mood", "r"), QUESTION, type="x")
    queue = bus.work("INFER", *INFER, bytes, slots=lambda: 2)
    delivery = await anext(queue)
    waiting = [
        asyncio.create_task(anext(queue)),
        asyncio.create_task(anext(bus.follow("EVENTS"))),
        asyncio.create_task(bus.call("scheduler", "jobs", subjects.find_call("scheduler", "jobs").request())),
    ]
    await asyncio.sleep(0.3)
    began = time.monotonic()
    await bus.close()
    for ended in await asyncio.gather(*waiting, return_exceptions=True):
        assert isinstance(ended, Busy), ended
    bucket = bus.bucket("models")
    for attempt in (
        delivery.ack(), delivery.in_progress(), delivery.dead("x"), bus.emit(JobCancelled("j", "a")),
        bus.tell("llmos.reply.c.r", QUESTION, type="x"), bus.last_sequence("EVENTS"), bus.stream_state("EVENTS"),
        bus.purge("WORK", "llmos.work.a.b.c"), bus.last_of("EVENTS", "llmos.evt.job.cancelled.a.j", JobCancelled),
        bucket.get("k", int), bucket.put("k", 1), bucket.create("k", 1), bucket.update("k", 1, 1), bucket.delete("k"),
        bucket.keys(), anext(bus.follow("EVENTS")), anext(bus.work("INFER", *INFER, bytes, slots=lambda: 1)),
        anext(bucket.watch(int)),
    ):  # fmt: skip
        with pytest.raises(Busy):
            await attempt
    assert time.monotonic() - began < 3


async def test_reading_while_the_bus_is_away_ends_in_busy(bus: Bus, nats_server: NatsServer) -> None:
    await bus.bucket("models").put("m", 1)
    await nats_server.kill()
    async with asyncio.timeout(12):
        results = await asyncio.gather(
            bus.bucket("models").keys(),
            bus.bucket("models").get("m", int),
            bus.last_sequence("EVENTS"),
            return_exceptions=True,
        )
    assert [type(result) for result in results] == [Busy] * 3


async def test_json_that_nobody_expects_in_a_bucket_is_an_error_that_names_the_key(bus: Bus) -> None:
    models = bus.bucket("models")
    await models.put("m", {"a": 1})
    with pytest.raises(LlmosError, match="models/m"):
        await models.get("m", int)
    with pytest.raises(Rejected, match="can't be a key"):
        await models.put("a b", 1)
    assert json.loads(msgspec.json.encode(await models.keys())) == ["m"]
