"""A job's facts as server-sent events: order, resuming, keeping alive, ending."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx

from llmos import service
from llmos.bus import Bus
from llmos.contracts import jobs
from llmos.testing.scripted import ScriptedScheduler, rejected
from llmos_gateway.config import GatewayConfig
from llmos_gateway.service import serve

SPEC: dict[str, Any] = {"name": "intents", "model": {"base": "hf:a/b"}, "data": {"train": "file:///rows.jsonl"}}


class Sent(NamedTuple):
    id: int
    name: str
    data: dict[str, Any]


async def read_events(response: httpx.Response) -> AsyncIterator[Sent]:
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "data" in fields:
            yield Sent(int(fields["id"]), fields["event"], json.loads(fields["data"]))
            fields = {}


async def all_events(http: httpx.AsyncClient, job: str, last: str = "") -> list[Sent]:
    headers = {"Last-Event-ID": last} if last else {}
    async with http.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        return [sent async for sent in read_events(response)]


async def test_a_stream_tells_everything_of_the_job_and_ends_with_it(
    http: httpx.AsyncClient, scheduler: ScriptedScheduler
) -> None:
    job = (await http.post("/v1/jobs", json=SPEC)).json()["job"]
    events = await all_events(http, job)
    assert [events[0].name, events[-1].name] == ["job.admitted", "job.deployed"]
    assert {"task.progressed", "task.succeeded", "model.exported"} <= {event.name for event in events}
    assert [event.id for event in events] == sorted(event.id for event in events)
    assert events[0].data["job"] == job


async def test_a_reader_resumes_after_the_last_event_that_it_had(
    http: httpx.AsyncClient, scheduler: ScriptedScheduler
) -> None:
    job = (await http.post("/v1/jobs", json=SPEC)).json()["job"]
    events = await all_events(http, job)
    assert await all_events(http, job, str(events[4].id)) == events[5:]


async def test_after_the_end_a_browser_is_told_to_stop_reconnecting(
    http: httpx.AsyncClient, scheduler: ScriptedScheduler
) -> None:
    job = (await http.post("/v1/jobs", json=SPEC)).json()["job"]
    last = (await all_events(http, job))[-1].id
    response = await http.get(f"/v1/jobs/{job}/events", headers={"Last-Event-ID": str(last)})
    assert response.status_code == 204


async def test_a_last_event_id_that_is_none_is_named(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    job = (await http.post("/v1/jobs", json=SPEC)).json()["job"]
    for last in ("x", "-1", "1.5", "²"):
        response = await http.get(f"/v1/jobs/{job}/events", headers={b"Last-Event-ID": last.encode()})
        assert (response.status_code, response.json()["param"]) == (422, "Last-Event-ID")


async def test_a_job_that_waits_for_the_scheduler_can_be_followed_already(http: httpx.AsyncClient, bus: Bus) -> None:
    job = (await http.post("/v1/jobs", json=SPEC)).json()["job"]

    async def later() -> None:
        await asyncio.sleep(0.3)
        await bus.emit(jobs.JobRejected(job, "default", [jobs.Fault("train", "no")]))

    task = asyncio.create_task(later())
    assert [event.name for event in await all_events(http, job)] == ["job.rejected"]
    await task


async def test_a_quiet_stream_is_kept_alive_by_comments(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    scheduler.story = lambda job, spec: iter([asyncio.Event()])
    job = (await http.post("/v1/jobs", json=SPEC)).json()["job"]
    async with http.stream("GET", f"/v1/jobs/{job}/events") as response:
        lines = response.aiter_lines()
        found = [line async for line in _until(lines, ": keep-alive")]
    assert found[0] == "retry: 1000"
    assert any(line.startswith("event: job.admitted") for line in found)


async def _until(lines: AsyncIterator[str], end: str) -> AsyncIterator[str]:
    async for line in lines:
        yield line
        if line == end:
            return


async def test_a_reader_that_leaves_takes_its_consumer_along(
    http: httpx.AsyncClient, scheduler: ScriptedScheduler, bus: Bus
) -> None:
    scheduler.story = lambda job, spec: iter([asyncio.Event()])
    job = (await http.post("/v1/jobs", json=SPEC)).json()["job"]
    before = await _consumers(bus)
    async with http.stream("GET", f"/v1/jobs/{job}/events") as response:
        events = read_events(response)
        await anext(events)
        assert await _consumers(bus) == before + 1
    for _ in range(100):
        if await _consumers(bus) == before:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("the consumer outlived its reader")


async def _consumers(bus: Bus) -> int:
    from llmos.bus import api

    return int((await api.request(bus._nc, "STREAM.INFO.EVENTS"))["state"]["consumer_count"])


async def test_a_stopping_gateway_ends_its_streams_and_stops_in_time(
    gateway_config: GatewayConfig, scheduler: ScriptedScheduler
) -> None:
    scheduler.story = lambda job, spec: iter([asyncio.Event()])
    loop = asyncio.get_running_loop()
    url = f"http://127.0.0.1:{gateway_config.http_port}"
    async with httpx.AsyncClient(base_url=url) as http:
        async with service.running("gateway", gateway_config, serve) as context:
            job = (await http.post("/v1/jobs", json=SPEC)).json()["job"]
            async with http.stream("GET", f"/v1/jobs/{job}/events") as response:
                events = read_events(response)
                await anext(events)
                started = loop.time()
                context.stopping.set()
                assert [event async for event in events] == []
        assert loop.time() - started < gateway_config.drain_s


async def test_a_job_that_was_rejected_can_still_be_read(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    scheduler.story = rejected
    await http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "job-1"})
    (event,) = await all_events(http, "job-1")
    assert (event.name, len(event.data["faults"])) == ("job.rejected", 2)
