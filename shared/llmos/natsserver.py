"""A nats-server of our own: found, started on a free port, and stopped again."""

import asyncio
import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from llmos.errors import Fatal

READY_WITHIN_S = 15.0


def find_server() -> str:
    """The path of a nats-server: on PATH, or the one that the `local` extra brings. Raises `Fatal`."""
    beside = Path(sys.executable).with_name("nats-server")
    found = shutil.which("nats-server") or (str(beside) if beside.exists() else None)
    if found is None:
        raise Fatal(
            "no nats-server was found",
            remedy="Set NATS_URL to a running one, put nats-server 2.14+ on PATH, or `pip install 'llmos[local]'`.",
        )
    return found


class NatsServer:
    """One nats-server process on loopback with JetStream under `store`; keeps its port over a restart.

    `config` is a file of further settings.
    """

    def __init__(self, store: Path, *, port: int = -1, log: Path | None = None, config: Path | None = None) -> None:
        self.store = store
        self.port = port
        self._log = log
        self._config = config
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The process id; 0 when it does not run."""
        return self._process.pid if self._process and self._process.returncode is None else 0

    async def start(self) -> "NatsServer":
        """Start and wait until clients can connect. Raises `Fatal` with the server's own words when it can't."""
        self.store.mkdir(parents=True, exist_ok=True)
        ports = self.store / "ports"
        shutil.rmtree(ports, ignore_errors=True)
        ports.mkdir()
        log = self._log or self.store / "nats-server.log"
        self._process = await asyncio.create_subprocess_exec(
            find_server(), "-js", "-sd", str(self.store), "-a", "127.0.0.1", "-p", str(self.port),
            "--ports_file_dir", str(ports), "-l", str(log),
            *(("-c", str(self._config)) if self._config else ()),
            stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = asyncio.get_running_loop().time() + READY_WITHIN_S
        while asyncio.get_running_loop().time() < deadline:
            if self._process.returncode is not None:
                break
            if self._read_port(ports):
                return self
            await asyncio.sleep(0.01)
        await self.stop()
        tail = log.read_text()[-2000:] if log.exists() else ""
        raise Fatal(f"nats-server did not start on port {self.port}: {tail.strip()}", remedy=f"See {log}.")

    def _read_port(self, ports: Path) -> bool:
        for file in ports.glob("*.ports"):
            with suppress(ValueError, KeyError, IndexError, OSError):  # half written: look again
                self.port = int(json.loads(file.read_text())["nats"][0].rsplit(":", 1)[1])
                return True
        return False

    async def stop(self) -> None:
        """Stop it gracefully, or by force after 5 s."""
        if self._process is None or self._process.returncode is not None:
            return
        self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), 5)
        except TimeoutError:
            await self.kill()

    async def kill(self) -> None:
        """`kill -9`, as a crash would."""
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, 9)
            await self._process.wait()

    async def wait(self) -> int:
        """Wait for its end; the exit status."""
        assert self._process is not None
        return await self._process.wait()
