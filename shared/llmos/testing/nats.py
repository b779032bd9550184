"""A nats-server in a container, with the verbs of `llmos.natsserver.NatsServer`, where a Docker engine answers."""

import asyncio
import os
import socket
from contextlib import suppress
from typing import Any

from llmos.errors import Fatal

IMAGE = "nats:2.15.1"
READY_WITHIN_S = 30.0


def missing_container() -> str:
    """Why `NatsContainer` can't run here: no engine answers, or it hasn't the image. Empty when it can."""
    import docker
    from docker.errors import DockerException, ImageNotFound

    try:
        client = docker.from_env(timeout=30)
        try:
            client.images.get(os.environ.get("NATS_IMAGE", IMAGE))
        finally:
            client.close()
    except ImageNotFound:
        return f"the image {IMAGE} is not there (docker pull {IMAGE}, or tests/system/base_images.sh)"
    except DockerException as error:
        return f"no Docker engine answers: {error}"
    return ""


class NatsContainer:
    """nats-server with JetStream in a container; keeps its port and data over `kill` and `start`."""

    def __init__(self, port: int) -> None:
        os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
        from testcontainers.core.container import DockerContainer

        self.url = f"nats://127.0.0.1:{port}"
        self._port = port
        self._made = False
        self._container: Any = DockerContainer(os.environ.get("NATS_IMAGE", IMAGE)).with_command("-js -sd /data")
        self._container.with_bind_ports(4222, port)

    async def start(self) -> "NatsContainer":
        """Make or start it and wait until it greets clients. Raises `Fatal`."""
        if not self._made:
            await asyncio.to_thread(self._container.start)
            self._made = True
        else:
            await asyncio.to_thread(self._container.get_wrapped_container().start)
        deadline = asyncio.get_running_loop().time() + READY_WITHIN_S
        while asyncio.get_running_loop().time() < deadline:
            if await asyncio.to_thread(self._greets):
                return self
            await asyncio.sleep(0.05)
        raise Fatal("nats-server in a container did not start", remedy=str(self._container.get_logs()))

    def _greets(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1) as probe:
            return probe.recv(4) == b"INFO"
        return False

    async def kill(self) -> None:
        """`kill -9`, as a crash would."""
        await asyncio.to_thread(self._container.get_wrapped_container().kill)

    async def stop(self) -> None:
        """Stop and remove it."""
        await asyncio.to_thread(self._container.stop)
