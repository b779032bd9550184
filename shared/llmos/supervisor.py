"""Supervised child processes: restarted with back-off, logged with a prefix, and never outliving their parent."""

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from llmos.cancel import cancel
from llmos.errors import Fatal
from llmos.natsserver import find_server

BACKOFF_FIRST_S = 0.2
BACKOFF_MOST_S = 10.0
HEALTHY_AFTER_S = 20.0
KILL_AFTER_S = 7.5
LOG_BYTES = 16 << 20
BAD_SETTING = 78  # EX_CONFIG of sysexits.h: another start would end the same way
_PR_SET_PDEATHSIG = 1

Say = Callable[[str, str], None]


def free_port() -> int:
    """A loopback port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def die_with_parent() -> None:
    """In a child, before exec: be terminated when the parent dies, even by kill -9 (Linux; elsewhere nothing)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class _Log:
    """A file that is added to. At `LOG_BYTES` it becomes `<name>.1`, in place of the last one, and a new one begins: a
    service takes twice that of the disk and no more. What a full disk can't hold is dropped."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._open()

    def write(self, line: bytes) -> None:
        with suppress(OSError):  # a service that nobody reads from would stand still
            if self._size and self._size + len(line) > LOG_BYTES:
                self._file.close()
                try:
                    self._path.replace(self._path.with_name(f"{self._path.name}.1"))
                finally:
                    self._open()
            self._size += self._file.write(line) or 0

    def close(self) -> None:
        self._file.close()

    def _open(self) -> None:
        self._file = self._path.open("ab", buffering=0)
        self._size = self._file.tell()


class Process:
    """One program that is kept running until `stop`."""

    def __init__(self, name: str, command: list[str], env: dict[str, str], log: Path, say: Say) -> None:
        self.name = name
        self._command = command
        self._env = env
        self._log = log
        self._say = say
        self._stopping = False
        self.refused = asyncio.Event()
        self.last_line = ""
        self._child: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """The process id; 0 while it does not run."""
        return self._child.pid if self._child is not None and self._child.returncode is None else 0

    async def supervise(self) -> None:
        """Start it, and again after each end, until `stop` is called or it ends for a bad setting (then `refused`)."""
        loop = asyncio.get_running_loop()
        backoff = BACKOFF_FIRST_S
        while not self._stopping:
            started = loop.time()
            status = await self._run_once()
            if self._stopping:
                return
            if status == BAD_SETTING:
                self.refused.set()
                return
            if loop.time() - started > HEALTHY_AFTER_S:
                backoff = BACKOFF_FIRST_S
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
            self._say(self.name, f"{how}; starting again in {backoff:g} s")
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, BACKOFF_MOST_S)

    async def _run_once(self) -> int:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        child = self._child = await asyncio.create_subprocess_exec(
            *self._command,
            env=self._env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,
            limit=1 << 20,
        )
        assert child.stdout is not None
        reading = asyncio.create_task(self._copy(child.stdout))
        try:
            return await child.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # children that a crash left behind
            await reading

    async def _copy(self, output: asyncio.StreamReader) -> None:
        with closing(_Log(self._log)) as log:
            while True:
                try:
                    line = await output.readline()
                except ValueError:  # a line longer than the limit: what was read of it is dropped
                    continue
                if not line:
                    return
                log.write(line)
                self.last_line = line.decode(errors="replace").rstrip()
                self._say(self.name, self.last_line)

    async def stop(self) -> None:
        """Terminate it gracefully; by force, with all its children, after 7.5 s."""
        self._stopping = True
        child = self._child
        if child is None or child.returncode is not None:
            return
        with suppress(ProcessLookupError):
            child.terminate()
        try:
            async with asyncio.timeout(KILL_AFTER_S):
                await child.wait()
        except TimeoutError:
            self._say(self.name, "did not stop in time and is killed")
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)


async def server_process(data_dir: Path, say: Say) -> tuple["_Server", str]:
    """A supervised nats-server under `data_dir` that keeps its port; and its URL. Raises `Fatal`."""
    remembered = data_dir / "run" / "nats.port"
    port = int(remembered.read_text()) if remembered.exists() else 0
    if not port or not _is_free(port):
        port = free_port()
        remembered.write_text(str(port))
    server = _Server(
        "nats-server",
        [find_server(), "-js", "-sd", str(data_dir / "nats"), "-a", "127.0.0.1", "-p", str(port)],
        dict(os.environ),
        data_dir / "logs" / "nats-server.log",
        lambda *_: None,
    )
    server.start()
    deadline = asyncio.get_running_loop().time() + 15
    while asyncio.get_running_loop().time() < deadline:
        with suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            say("nats-server", f"listens on nats://127.0.0.1:{port}")
            return server, f"nats://127.0.0.1:{port}"
        await asyncio.sleep(0.02)
    await server.stop()
    raise Fatal(f"nats-server did not start on port {port}", remedy=f"See {data_dir}/logs/nats-server.log.")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class _Server(Process):
    """nats-server, supervised by a task of its own, so that it outlives the services at the end."""

    def start(self) -> None:
        self._task = asyncio.create_task(self.supervise())

    async def stop(self) -> None:
        await super().stop()
        await cancel(self._task)
