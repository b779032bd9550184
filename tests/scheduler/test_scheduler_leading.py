"""Which scheduler decides: one at a time, another soon after it is gone, and never what a deposed one still says."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from llmos.bus import Bus, Conflict, Fence
from llmos.clock import SystemClock
from llmos.contracts.jobs import JobAdmitted, JobRequested
from llmos.contracts.leader import LeaderElected, LeaderLease
from llmos.contracts.nodes import NodesRequested
from llmos.contracts.tasks import TaskPlaced
from llmos.history import read
from llmos.ids import new_id
from llmos.natsserver import NatsServer
from llmos.service import Context, running
from llmos.testing.cable import cable
from llmos_scheduler import leading
from llmos_scheduler.config import SchedulerConfig
from llmos_scheduler.leading import ELECTED
from llmos_scheduler.service import Scheduler

SPEC = msgspec.json.encode({"name": "mood", "model": {"base": "hf:org/base"}, "data": {"train": "file:///d.csv"}})


@pytest.fixture(autouse=True)
def quick_elections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leading, "RENEW_S", 0.1)
    monkeypatch.setattr(leading, "LOOK_S", 0.1)
    monkeypatch.setattr(leading, "FRESH_S", 0.3)


class Candidate:
    """A scheduler under its own node's name, and what it is just now."""

    def __init__(self, name: str, url: str, folder: Path, clock: SystemClock | None = None) -> None:
        self.config = SchedulerConfig(nats_url=url, node=name, data_dir=folder / name, drain_s=2.0)
        self.clock = clock
        self.made: Scheduler | None = None

    async def serve(self, ctx: Context[SchedulerConfig]) -> None:
        self.made = Scheduler(ctx)
        await self.made.run()

    @asynccontextmanager
    async def runs(self) -> AsyncIterator["Candidate"]:
        async with running("scheduler", self.config, self.serve, clock=self.clock):
            yield self

    @property
    def leadership(self) -> leading.Leadership:
        assert self.made is not None
        return self.made._leadership

    @property
    def caught_up(self) -> bool:
        return self.made is not None and self.made._following.applied > 0

    @property
    def leads(self) -> bool:
        return self.made is not None and self.leadership.fence is not None and not self.leadership.lost.is_set()


async def until(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def submit(bus: Bus) -> str:
    job = new_id("j")
    await bus.store(f"llmos.job.submit.acme.{job}", SPEC, {"Nats-Msg-Id": job})
    return job


async def admitted(bus: Bus, job: str) -> None:
    async with asyncio.timeout(15):
        async for heard in bus.follow("EVENTS", [f"llmos.evt.job.admitted.acme.{job}"]):
            assert isinstance(heard.event(), JobAdmitted)
            return


async def elections(bus: Bus) -> list[LeaderElected]:
    return [
        event for heard in await read(bus, "EVENTS", [ELECTED]) if isinstance(event := heard.event(), LeaderElected)
    ]


async def test_of_three_one_leads_and_the_others_take_over_in_turn(nats_url: str, bus: Bus, tmp_path: Path) -> None:
    async with Candidate("a", nats_url, tmp_path).runs() as first:
        await until(lambda: first.leads)
        async with Candidate("b", nats_url, tmp_path).runs() as second:
            await admitted(bus, await submit(bus))
            await asyncio.sleep(0.5)
            assert [first.leads, second.leads] == [True, False]
            assert len(await elections(bus)) == 1
            nodes = (await bus.call("scheduler", "nodes", NodesRequested())).nodes
            assert {node.node: node.leads for node in nodes} == {"a": ["scheduler"], "b": []}
            assert first.made is not None
            first.made._ctx.stopping.set()
            await until(lambda: second.leads)
            job = await submit(bus)
            await admitted(bus, job)
            assert (await bus.call("scheduler", "job", JobRequested(job))).job == job
    assert [event.term for event in await elections(bus)] == [1, 2]


async def test_a_leader_that_can_not_be_reached_is_replaced_and_steps_down(
    nats_url: str, bus: Bus, tmp_path: Path
) -> None:
    async with cable(nats_url) as line, Candidate("a", line.url, tmp_path).runs() as first:
        await until(lambda: first.leads)
        async with Candidate("b", nats_url, tmp_path).runs() as second:
            await until(lambda: second.caught_up)
            line.cut()
            await until(lambda: second.leads)
            job = await submit(bus)
            await admitted(bus, job)
            line.plug()
            await until(lambda: not first.leads)
            assert second.leads
            await admitted(bus, await submit(bus))
    assert [event.term for event in await elections(bus)][:2] == [1, 2]


async def test_what_was_decided_before_another_was_elected_is_refused(nats_url: str, bus: Bus, tmp_path: Path) -> None:
    """A leader that goes on without a look at the lease or the history: the server itself says no."""
    async with Candidate("a", nats_url, tmp_path).runs() as leader:
        await until(lambda: leader.leads)
        fence = leader.leadership.fence
        assert fence is not None
        usurper = await bus.emit(LeaderElected("usurper", 7), id="usurper", fence=fence)
        placed = TaskPlaced("t", "j", "acme", "train", 1, 1, "a")
        with pytest.raises(Conflict):
            await bus.emit(placed, id="late", fence=fence)
        await bus.emit(placed, id="good", fence=Fence(ELECTED, usurper))
        await until(lambda: leader.leadership.term == 8 and leader.leads)
    assert [event.term for event in await elections(bus)] == [1, 7, 8]


async def test_a_stolen_lease_makes_the_leader_stand_by_until_it_is_old(
    nats_url: str, bus: Bus, tmp_path: Path
) -> None:
    async with Candidate("a", nats_url, tmp_path).runs() as leader:
        await until(lambda: leader.leads)
        await bus.bucket("lease").put("scheduler", LeaderLease("thief", "x", 5))
        await until(lambda: not leader.leads)
        await until(lambda: leader.leads)
        await admitted(bus, await submit(bus))
    assert [event.term for event in await elections(bus)] == [1, 6]


async def test_a_killed_server_changes_no_leader_for_long(nats_server: NatsServer, bus: Bus, tmp_path: Path) -> None:
    async with Candidate("a", nats_server.url, tmp_path).runs() as first:
        await until(lambda: first.leads)
        async with Candidate("b", nats_server.url, tmp_path).runs() as second:
            await until(lambda: second.caught_up)
            for _ in range(3):
                await nats_server.kill()
                await asyncio.sleep(0.5)
                await nats_server.start()
                await until(lambda: first.leads != second.leads)
                await admitted(bus, await submit(bus))
    terms = [event.term for event in await elections(bus)]
    assert terms == sorted(set(terms))


class SteppedClock(SystemClock):
    """The machine's clock, and what a test adds to it."""

    ahead = 0.0

    def now(self) -> float:
        return super().now() + self.ahead


@pytest.mark.parametrize("step", [3600.0, -3600.0])
async def test_a_clock_that_jumps_costs_nothing(nats_url: str, bus: Bus, tmp_path: Path, step: float) -> None:
    clock = SteppedClock()
    async with (
        Candidate("a", nats_url, tmp_path, clock).runs() as first,
        Candidate("b", nats_url, tmp_path).runs() as second,
    ):
        await until(lambda: first.leads or second.leads)
        for _ in range(5):
            clock.ahead += step
            await admitted(bus, await submit(bus))
        assert first.leads != second.leads
    assert len(await elections(bus)) == 1


async def test_a_bus_on_which_only_the_lease_is_lost_elects_again(nats_url: str, bus: Bus, tmp_path: Path) -> None:
    async with Candidate("a", nats_url, tmp_path).runs() as leader:
        await until(lambda: leader.leads)
        await bus.bucket("lease").delete("scheduler")
        await until(lambda: leader.leadership.term == 2 and leader.leads)
        await admitted(bus, await submit(bus))
    assert len(await elections(bus)) == 2
