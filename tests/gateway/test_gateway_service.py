"""The gateway as a service: health, readiness, its description, its address."""

import asyncio
import os
import socket
import sys
import time
from typing import Any

import httpx
import pytest

from llmos import service
from llmos.errors import Fatal
from llmos.natsserver import NatsServer
from llmos_gateway.config import GatewayConfig
from llmos_gateway.service import listen, serve


async def test_a_gateway_is_healthy_and_ready(http: httpx.AsyncClient) -> None:
    assert (await http.get("/healthz")).json() == {"status": "ok"}
    assert (await http.get("/readyz")).json() == {"status": "ok"}


async def test_without_the_bus_it_is_alive_and_not_ready(http: httpx.AsyncClient, nats_server: NatsServer) -> None:
    await nats_server.kill()
    assert (await http.get("/healthz")).status_code == 200
    response = await http.get("/readyz")
    assert (response.status_code, response.json()["code"]) == (503, "busy")
    await nats_server.start()


async def test_the_description_names_every_route_and_the_spec(http: httpx.AsyncClient) -> None:
    description: dict[str, Any] = (await http.get("/openapi.json")).json()
    assert {
        "/healthz", "/readyz", "/v1/jobs", "/v1/jobs/{job}", "/v1/jobs/{job}/events", "/v1/jobs/{job}/explain",
        "/v1/models", "/v1/models/{name}", "/v1/models/{name}/infer", "/v1/nodes",
        "/v1/nodes/{node}/cordon", "/v1/plan", "/v1/queues", "/v1/reservations", "/v1/reservations/{name}",
    } == set(description["paths"])  # fmt: skip
    submit = description["paths"]["/v1/jobs"]["post"]
    reference = submit["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    name = reference.removeprefix("#/components/schemas/")
    assert set(description["components"]["schemas"][name]["required"]) == {"name", "model", "data"}
    assert "application/problem+json" in submit["responses"]["422"]["content"]


def test_a_taken_address_is_fatal_and_names_the_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(Fatal, match="LLMOS_HTTP_PORT"):
        listen("127.0.0.1", taken.getsockname()[1])


async def test_a_gateway_that_can_not_listen_stops_with_the_reason(gateway_config: GatewayConfig) -> None:
    with socket.create_server(("127.0.0.1", gateway_config.http_port)), pytest.raises(Fatal, match="can't listen"):
        async with service.running("gateway", gateway_config, serve) as context:
            await context.stopping.wait()


async def test_the_process_serves_and_ends_with_0_on_sigterm(gateway_config: GatewayConfig) -> None:
    config = gateway_config
    env = os.environ | {
        "LLMOS_NATS_URL": config.nats_url,
        "LLMOS_DATA_DIR": str(config.data_dir),
        "LLMOS_HTTP_PORT": str(config.http_port),
    }
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "llmos_gateway", env=env)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{config.http_port}") as client:
            while not service.is_ready(config.data_dir, "gateway", time.time()):
                assert process.returncode is None
                await asyncio.sleep(0.05)
            assert (await client.get("/readyz")).status_code == 200
    finally:
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 10) == 0
