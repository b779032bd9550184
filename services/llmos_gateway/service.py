"""The shell: a uvicorn server in the service's own loop, on a socket that is bound before it is said to be ready."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from litestar import Litestar
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

import llmos
from llmos.cancel import cancel
from llmos.client import Client
from llmos.errors import Fatal, LlmosError
from llmos.service import Context
from llmos_gateway import problems
from llmos_gateway.config import GatewayConfig
from llmos_gateway.door import Door, allowed_names
from llmos_gateway.routes import ROUTES, Gateway
from llmos_gateway.routes_cluster import CLUSTER_ROUTES

BACKLOG = 512


def make_app(gateway: Gateway) -> Litestar:
    """The ASGI application behind the door."""
    return Litestar(
        [*ROUTES, *CLUSTER_ROUTES],
        dependencies={"gateway": Provide(lambda: gateway, sync_to_thread=False)},
        exception_handlers={
            LlmosError: problems.on_llmos_error,
            HTTPException: problems.on_http_error,
            Exception: problems.on_unexpected,
        },
        openapi_config=OpenAPIConfig(
            title="llmos", version=llmos.__version__, path="/openapi.json", render_plugins=[JsonRenderPlugin(path="/")]
        ),
        request_max_body_size=gateway.config.max_body,
        logging_config=None,
    )


class _Server(uvicorn.Server):
    """The service's life already listens to signals."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises `Fatal` with the remedy when the address is taken or not ours."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise Fatal(
            f"can't listen on {host}:{port}: {error.strerror}", remedy="Set LLMOS_HTTP_HOST and LLMOS_HTTP_PORT."
        ) from error


async def serve(context: Context[GatewayConfig]) -> None:
    """Answer HTTP until the service stops; requests under way are finished first."""
    config = context.config
    client = Client(context.bus, telemetry=context.telemetry, clock=context.clock)
    names = allowed_names(config.http_host, config.http_hosts)
    door = Door(make_app(Gateway(client, config, context.stopping)), context.telemetry, names)
    with listen(config.http_host, config.http_port) as bound:
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
        server = _Server(
            uvicorn.Config(
                door,
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=max(1, int(config.drain_s) - 1),
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        try:
            host, port = bound.getsockname()[:2]
            context.log.info("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")
            context.announce()
            stopped = asyncio.create_task(context.stopping.wait())
            await asyncio.wait({serving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            server.should_exit = True
            await serving
        finally:
            await cancel(serving, stopped)
