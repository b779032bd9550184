"""Fixtures that every room shares: a real nats-server, fresh for each test that asks for one."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from llmos.bus import Bus
from llmos.natsserver import NatsServer


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncIterator[NatsServer]:
    """A nats-server of the test's own; `kill`, then `start` again keeps port and data."""
    server = await NatsServer(tmp_path / "nats").start()
    yield server
    await server.stop()


@pytest.fixture
async def nats_url(nats_server: NatsServer) -> str:
    return nats_server.url


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    """A connected bus of a bystander."""
    bus = await Bus.connect(nats_url, source="test/node")
    yield bus
    await bus.close()
