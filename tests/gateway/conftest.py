"""A real gateway on a real bus, with a scripted scheduler behind it."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from llmos import service
from llmos.bus import Bus
from llmos.service import Context
from llmos.supervisor import free_port
from llmos.testing.scripted import ScriptedScheduler, playing
from llmos_gateway.config import GatewayConfig
from llmos_gateway.service import serve


@pytest.fixture
async def scheduler(bus: Bus) -> AsyncIterator[ScriptedScheduler]:
    scheduler = ScriptedScheduler(bus)
    async with playing(scheduler):
        yield scheduler


@pytest.fixture
def gateway_config(nats_url: str, tmp_path: Path) -> GatewayConfig:
    return GatewayConfig(
        nats_url=nats_url,
        node="n1",
        data_dir=tmp_path / "data",
        http_port=free_port(),
        admit_within_s=0.5,
        keep_alive_s=0.2,
        max_body=4096,
        infer_within_s=0.5,
    )


@pytest.fixture
async def gateway(gateway_config: GatewayConfig) -> AsyncIterator[Context[GatewayConfig]]:
    async with service.running("gateway", gateway_config, serve) as context:
        while not service.is_ready(gateway_config.data_dir, "gateway", time.time()):
            assert not context.stopping.is_set(), "the gateway stopped"
            await asyncio.sleep(0.01)
        yield context


@pytest.fixture
async def http(gateway: Context[GatewayConfig]) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{gateway.config.http_port}"
    async with httpx.AsyncClient(base_url=url) as client:
        yield client
