"""Three schedulers as processes, under load: whatever becomes of the leader, another places, and nothing twice."""

import asyncio
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from llmos.bus import Bus
from llmos.cancel import cancel
from llmos.contracts.leader import LeaderElected, LeaderLease
from llmos.contracts.subjects import event_subject
from llmos.history import read
from llmos.natsserver import NatsServer
from noop_cluster import Leases, SchedulerProcess, Workers, cluster, submit

pytestmark = pytest.mark.system

CPUS = 8
TAKEN_OVER_S = 10.0


class Stage:
    """The schedulers, and what the history says of them."""

    def __init__(self, server: NatsServer, bus: Bus, workers: Workers, folder: Path) -> None:
        self.server = server
        self.bus = bus
        self.workers = workers
        self.leases = Leases(CPUS)
        self.jobs: list[str] = []
        self.schedulers = {name: SchedulerProcess(name, server.url, folder) for name in ("s0", "s1", "s2")}

    async def load(self) -> None:
        while True:
            self.jobs += await submit(self.bus, 3)
            await asyncio.sleep(0.25)

    async def leader(self) -> SchedulerProcess:
        async with asyncio.timeout(30):
            while True:
                entry = await self.bus.bucket("lease").get("scheduler", LeaderLease)
                if entry is not None and entry.value.node in self.schedulers:
                    return self.schedulers[entry.value.node]
                await asyncio.sleep(0.05)

    async def until(self, condition: Callable[[], bool], within: float = 60) -> None:
        async with asyncio.timeout(within):
            while not condition():
                await asyncio.sleep(0.02)

    async def taken_over(self, elections: int) -> float:
        """Wait until one more than so many was elected and placed something; when that was (monotonic)."""
        leases = self.leases

        def placed() -> list[float]:
            if len(leases.elected) <= elections:
                return []
            return [at for at, heard, _ in leases.placed if heard.sequence > leases.elected[elections][0].sequence]

        await self.until(lambda: bool(placed()))
        return placed()[0]

    async def finish(self, *, handed_once: bool = True) -> None:
        """Every job ends once; nothing was placed twice, nor handed out twice but by a server that forgot acks."""
        await self.until(lambda: self.leases.ended.issuperset(self.jobs), 90)
        assert self.leases.wrong == []
        again = [work for work, times in Counter(self.workers.taken).items() if times > 1]
        assert again == [] or not handed_once


@asynccontextmanager
async def staged(folder: Path) -> AsyncIterator[tuple[Stage, "asyncio.Task[None]"]]:
    async with cluster(folder, cpus=CPUS, takes_s=0.1) as (server, bus, workers):
        stage = Stage(server, bus, workers, folder)
        hearing = asyncio.create_task(stage.leases.run(bus))
        loading = asyncio.create_task(stage.load())
        try:
            await stage.until(lambda: len(stage.leases.placed) > 5)
            await asyncio.sleep(2)  # the standbys are there too
            yield stage, loading
        finally:
            await cancel(hearing, loading)
            for scheduler in stage.schedulers.values():
                scheduler.process.send_signal(signal.SIGCONT)
                scheduler.end(signal.SIGKILL)


async def test_a_killed_leader_is_replaced_within_seconds_and_nothing_is_placed_twice(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, loading):
        for _ in range(2):
            elections, victim = len(stage.leases.elected), await stage.leader()
            died = time.monotonic()
            victim.end(signal.SIGKILL)
            assert await stage.taken_over(elections) - died < TAKEN_OVER_S
        await cancel(loading)
        await stage.finish()


async def test_a_paused_leader_that_wakes_up_places_nothing_and_stands_by(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, loading):
        for _ in range(2):
            elections, paused = len(stage.leases.elected), await stage.leader()
            paused.send(signal.SIGSTOP)
            await stage.taken_over(elections)
            since = stage.leases.elected[elections][0].sequence
            paused.send(signal.SIGCONT)
            await stage.until(lambda log=paused.log: "leads no more" in log.read_text())  # type: ignore[misc]
            await asyncio.sleep(1)
            late = [
                heard.subject
                for heard in await read(stage.bus, "EVENTS", ["llmos.evt.>"], start=since)
                if heard.envelope.source == f"llmos/scheduler/{paused.name}"
            ]
            assert late == []
            assert paused.process.poll() is None, "it stands by"
            assert (await stage.leader()).name != paused.name
        await cancel(loading)
        await stage.finish()


async def test_a_killed_server_under_load_leaves_one_leader_and_nothing_placed_twice(tmp_path: Path) -> None:
    async with staged(tmp_path) as (stage, loading):
        for _ in range(2):
            await stage.server.kill()
            await asyncio.sleep(1)
            await stage.server.start()
            placed = len(stage.leases.placed)
            await stage.until(lambda count=placed: len(stage.leases.placed) > count + 20)  # type: ignore[misc]
        await cancel(loading)
        await stage.finish(handed_once=False)
        terms = [heard.event() for heard in await read(stage.bus, "EVENTS", [event_subject(LeaderElected("", 0))])]
        numbers = [event.term for event in terms if isinstance(event, LeaderElected)]
        assert numbers == sorted(set(numbers))
