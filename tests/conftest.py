"""Fixtures that every room shares: a real nats-server, fresh for each test that asks, and one real S3 server."""

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import hypothesis
import pytest

from llmos.bus import Bus
from llmos.natsserver import NatsServer
from llmos.testing import s3

# The same examples at every run: a change is judged, not the draw. `HYPOTHESIS_PROFILE=random` looks further.
hypothesis.settings.register_profile("fixed", derandomize=True)
hypothesis.settings.register_profile("random", derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fixed"))
# Threads that wait for work must sleep: the cores are shared with the processes that the tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# A shell ignores SIGINT for what it runs in the background, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[s3.S3Server]:
    """An S3 server for the whole run, started when a test first asks; each test takes a bucket or prefix of its own."""
    with s3.s3_server() as server:
        yield server
