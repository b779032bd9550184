"""A service's life: it announces itself, drains when told, is cancelled when it does not, and leaves no trace."""

import asyncio
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos.bus import Bucket, Bus
from llmos.contracts.nodes import Heartbeat
from llmos.errors import LlmosError
from llmos.service import Context, ServiceConfig, is_ready, ready_file, running


def settings(url: str, tmp_path: Path, **more: object) -> ServiceConfig:
    return ServiceConfig(nats_url=url, node="n1", data_dir=tmp_path / "data", **more)  # type: ignore[arg-type]


async def test_a_service_announces_itself_and_takes_it_back(nats_url: str, tmp_path: Path, bus: Bus) -> None:
    config = settings(nats_url, tmp_path)

    async def serve(context: Context[ServiceConfig]) -> None:
        context.announce(kinds=["train"], memory=7, used=lambda: 3)
        await context.stopping.wait()

    async with running("trainer", config, serve) as context:
        async with asyncio.timeout(5):
            while not is_ready(config.data_dir, "trainer", context.clock.now()):
                await asyncio.sleep(0.02)
        beat = await bus.bucket("nodes").get("n1.trainer", Heartbeat)
        assert beat is not None
        assert (beat.value.kinds, beat.value.memory, beat.value.used) == (["train"], 7, 3)
    assert await bus.bucket("nodes").get("n1.trainer", Heartbeat) is None
    assert not ready_file(config.data_dir, "trainer").exists()


async def test_a_heartbeat_on_its_way_is_waited_for_and_then_taken_back(
    nats_url: str, tmp_path: Path, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, on_its_way = Bucket.put, asyncio.Event()

    async def slowly(self: Bucket, key: str, value: Any) -> int:
        on_its_way.set()
        await asyncio.sleep(0.3)
        return await put(self, key, value)

    monkeypatch.setattr(Bucket, "put", slowly)

    async def serve(context: Context[ServiceConfig]) -> None:
        context.announce()
        await context.stopping.wait()

    async with running("trainer", settings(nats_url, tmp_path), serve):
        await on_its_way.wait()
    assert await bus.bucket("nodes").get("n1.trainer", Heartbeat) is None
    assert await bus.last_sequence("KV_nodes") > 0, "it had arrived"


async def test_the_heartbeat_of_a_successor_stays(nats_url: str, tmp_path: Path, bus: Bus) -> None:
    async def serve(context: Context[ServiceConfig]) -> None:
        context.announce(memory=int(context.config.drain_s))
        await context.stopping.wait()

    async def beats(memory: int) -> None:
        async with asyncio.timeout(5):
            while (
                beat := await bus.bucket("nodes").get("n1.trainer", Heartbeat)
            ) is None or beat.value.memory != memory:
                await asyncio.sleep(0.02)

    async with running("trainer", settings(nats_url, tmp_path, drain_s=7), serve):
        await beats(7)
        successor = running("trainer", settings(nats_url, tmp_path / "next", drain_s=9), serve)
        await successor.__aenter__()
        await beats(9)
    await beats(9)
    await successor.__aexit__(None, None, None)
    assert await bus.bucket("nodes").get("n1.trainer", Heartbeat) is None


async def test_a_service_that_does_not_drain_is_cancelled(nats_url: str, tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def serve(context: Context[ServiceConfig]) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    async with running("trainer", settings(nats_url, tmp_path, drain_s=0.2), serve):
        await asyncio.sleep(0.05)
    assert ended.is_set()


async def test_what_a_service_raises_is_raised_by_its_runner(nats_url: str, tmp_path: Path) -> None:
    async def serve(context: Context[ServiceConfig]) -> None:
        raise LlmosError("broken")

    with pytest.raises(LlmosError, match="broken"):
        async with running("trainer", settings(nats_url, tmp_path), serve) as context:
            await context.stopping.wait()


async def test_start_and_stop_in_any_order_many_times(nats_url: str, tmp_path: Path) -> None:
    async def serve(context: Context[ServiceConfig]) -> None:
        context.announce()
        await context.stopping.wait()

    async def once(number: int) -> None:
        async with running(f"s{number % 3}", settings(nats_url, tmp_path / str(number)), serve):
            await asyncio.sleep(0.001 * number)

    async with asyncio.timeout(60):
        await asyncio.gather(*(once(number) for number in range(24)))


PROGRAM = """
import sys
from llmos.service import ServiceConfig, main
async def serve(context):
    context.announce()
    await context.stopping.wait()
sys.exit(main("audit", ServiceConfig, serve))
"""


async def test_a_process_ends_cleanly_on_sigterm(nats_url: str, tmp_path: Path) -> None:
    env = os.environ | {"LLMOS_NATS_URL": nats_url, "LLMOS_NODE": "n1", "LLMOS_DATA_DIR": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, env=env, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(20):
        while not ready_file(tmp_path, "audit").exists():
            await asyncio.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_process_that_waits_for_the_bus_ends_on_sigterm(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and says nothing
        url = f"nats://127.0.0.1:{silent.getsockname()[1]}"
        env = os.environ | {"LLMOS_NATS_URL": url, "LLMOS_NODE": "n1", "LLMOS_DATA_DIR": str(tmp_path)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROGRAM, env=env, stderr=asyncio.subprocess.PIPE
        )
        silent.setblocking(False)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(20):
            connection, _ = await loop.sock_accept(silent)
            process.send_signal(signal.SIGTERM)
        with connection:
            async with asyncio.timeout(5):
                assert await process.wait() == 0


async def test_a_bad_setting_is_named_with_the_remedy(tmp_path: Path) -> None:
    env = os.environ | {"LLMOS_DRAIN_S": "soon"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, env=env, stderr=asyncio.subprocess.PIPE
    )
    _, err = await process.communicate()
    assert process.returncode == 78
    assert b"LLMOS_DRAIN_S='soon'" in err
    assert b"Set LLMOS_DRAIN_S to a float" in err
