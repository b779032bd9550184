"""The blocking face of the SDK: the same methods, on a loop of its own."""

import asyncio
import inspect
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmos.bus import Bus
from llmos.client import Client
from llmos.contracts import jobs
from llmos.errors import NotFound
from llmos.sync import Portal, SyncClient
from llmos.testing.scripted import ScriptedScheduler, playing

SPEC: dict[str, Any] = {"name": "intents", "model": {"base": "hf:a/b"}, "data": {"train": "file:///rows.jsonl"}}
INTERNAL = {"connect", "close", "ended"}


def test_every_method_of_the_client_has_its_blocking_form() -> None:
    methods = {
        name
        for name, member in inspect.getmembers(Client)
        if inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)
    }
    missing = {name for name in methods if not name.startswith("_")} - INTERNAL - set(vars(SyncClient))
    assert not missing


def test_a_blocking_method_has_the_signature_of_the_async_one() -> None:
    assert inspect.signature(SyncClient.infer) == inspect.signature(Client.infer)


@pytest.fixture
async def scheduler(bus: Bus) -> AsyncIterator[ScriptedScheduler]:
    scheduler = ScriptedScheduler(bus)
    async with playing(scheduler):
        yield scheduler


async def test_a_blocking_program_submits_and_follows_a_job(nats_url: str, scheduler: ScriptedScheduler) -> None:
    def program() -> tuple[str, list[type], str]:
        with SyncClient(nats_url) as llmos:
            job = llmos.submit(SPEC)
            events = [type(event) for event in llmos.events(job)]
            with pytest.raises(NotFound):
                llmos.job("job-none")
            return job, events, llmos.wait(job, timeout=10).state

    job, events, state = await asyncio.to_thread(program)
    assert (events[0], events[-1], state) == (jobs.JobAdmitted, jobs.JobDeployed, "deployed")
    assert scheduler.jobs[job].state == "deployed"


async def test_leaving_an_iteration_early_lets_the_client_close(nats_url: str, scheduler: ScriptedScheduler) -> None:
    def program() -> None:
        with SyncClient(nats_url) as llmos:
            for _ in llmos.events(llmos.submit(SPEC)):
                break

    await asyncio.wait_for(asyncio.to_thread(program), 10)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("llmos-client")]


def test_an_error_of_the_work_is_raised_where_it_was_called() -> None:
    async def fail() -> None:
        raise ValueError("no")

    portal = Portal()
    with pytest.raises(ValueError, match="no"):
        portal.call(fail())
    portal.close()


def test_a_closed_portal_refuses_work_and_may_be_closed_again() -> None:
    portal = Portal()
    portal.close()
    portal.close()
    with pytest.raises(RuntimeError, match="closed"):
        portal.call(asyncio.sleep(0))


def test_closing_a_portal_cancels_what_still_runs() -> None:
    portal = Portal()
    ended = threading.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async def start() -> None:
        portal_tasks.append(asyncio.create_task(work()))
        await asyncio.sleep(0)

    portal_tasks: list[asyncio.Task[None]] = []
    portal.call(start())
    portal.close()
    assert ended.is_set()
