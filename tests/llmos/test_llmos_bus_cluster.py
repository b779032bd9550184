"""A stream with replicas on a cluster of three servers: it takes fenced messages one at a time, and refuses as one."""

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import nats
import nats.errors
import pytest

from llmos.bus import Bus, Conflict, Fence
from llmos.contracts.jobs import JobCancelled
from llmos.contracts.leader import LeaderElected
from llmos.contracts.subjects import STREAMS, event_subject
from llmos.history import read
from llmos.natsserver import find_server

ELECTED = event_subject(LeaderElected("", 0))


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [found.getsockname()[1] for found in sockets]
    finally:
        for found in sockets:
            found.close()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[str]:
    """Three servers with the history on all of them; their URLs."""
    ports = free_ports(6)
    clients, routes = ports[:3], [f"nats://127.0.0.1:{port}" for port in ports[3:]]
    servers = [
        subprocess.Popen(  # noqa: ASYNC220  # it returns at once
            [
                *(find_server(), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", str(tmp_path / str(port))),
                *("--name", f"n{port}", "--cluster_name", "c", "--cluster", route, "--routes", ",".join(routes)),
            ],
            stderr=subprocess.DEVNULL,
        )
        for port, route in zip(clients, routes, strict=True)
    ]
    urls = [f"nats://127.0.0.1:{port}" for port in clients]
    try:
        async with asyncio.timeout(60):
            nc = await nats.connect(urls, allow_reconnect=True, max_reconnect_attempts=-1, reconnect_time_wait=0.2)
            while True:
                try:
                    subjects = list(STREAMS["EVENTS"].subjects)
                    await nc.jetstream().add_stream(name="EVENTS", subjects=subjects, num_replicas=3)
                    break
                except (nats.errors.Error, TimeoutError):
                    await asyncio.sleep(0.2)
            await nc.close()
        yield ",".join(urls)
    finally:
        for server in servers:
            server.kill()
            server.wait()


async def test_on_a_cluster_fenced_facts_are_stored_and_a_deposed_leader_s_are_not(cluster: str) -> None:
    bus = await Bus.connect(cluster, source="test/node", within=60)
    try:
        first = await bus.emit(LeaderElected("a", 1), id="e1", fence=Fence(ELECTED, 0))
        mine = [bus.fact(JobCancelled(f"j{n}", "acme"), id=f"f{n}", fence=Fence(ELECTED, first)) for n in range(50)]
        stored = await bus.store_many(mine)
        assert all(isinstance(result, int) for result in stored), stored
        again = [bus.fact(JobCancelled(f"k{n}", "acme"), id=f"g{n}", fence=Fence(ELECTED, first)) for n in range(50)]
        await bus.store_many(again)
        heard = [message.envelope.id for message in await read(bus, "EVENTS", ["llmos.evt.job.>"])]
        assert sorted(heard[:50]) == sorted(f"f{n}" for n in range(50))
        assert heard[50:] == [f"g{n}" for n in range(50)], "in their order, once it is known how this server takes them"
        second = await bus.emit(LeaderElected("b", 2), id="e2", fence=Fence(ELECTED, first))
        late = [bus.fact(JobCancelled(f"l{n}", "acme"), id=f"l{n}", fence=Fence(ELECTED, first)) for n in range(5)]
        assert [type(result) for result in await bus.store_many(late)] == [Conflict] * 5
        assert await bus.last_sequence("EVENTS") == second
    finally:
        await bus.close()
