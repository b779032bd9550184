"""The one-machine stack: nats-server and every service as supervised processes, started and stopped as one.

`up` runs in the foreground until Ctrl-C or SIGTERM (or detached), restarts what dies with back-off, and leaves no child
behind. What is running stands in `<data_dir>/run/stack.json`; logs are in `<data_dir>/logs/<service>.log`.
"""

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec
from msgspec import Struct

from llmos.cancel import cancel
from llmos.errors import Busy, Fatal, LlmosError, NotFound, Rejected
from llmos.service import is_ready
from llmos.supervisor import Process, free_port, server_process

STOP_WITHIN_S = 20.0

# service → the modules that its extra brings; a service whose extra is not installed is left out of the stack
SERVICES: dict[str, tuple[str, ...]] = {
    "vault": ("tink", "cryptography"),
    "audit": ("cryptography",),
    "scheduler": ("numpy",),
    "hw-agent": ("psutil",),
    "inferencer": ("onnxruntime", "tokenizers"),
    "exporter": ("torch", "onnx"),
    "trainer": ("torch", "peft"),
    "gateway": ("litestar", "uvicorn"),
}


class UpOptions(Struct, frozen=True, kw_only=True):
    """How to run the stack. `nats_url` and `artifacts` empty: a nats-server and a directory of our own.

    `http_port` 0 takes a free one. `file_roots` are the directories that `file://` references of jobs may lie in.
    """

    data_dir: Path = Path(".llmos")
    nats_url: str = ""
    artifacts: str = ""
    http_port: int = 0
    node: str = ""
    services: tuple[str, ...] = ()
    file_roots: tuple[Path, ...] = ()
    detach: bool = False
    quiet: bool = False


class StackInfo(Struct, frozen=True, kw_only=True):
    """A running stack, as `stack.json` tells."""

    pid: int
    data_dir: str
    nats_url: str
    gateway_url: str
    artifacts: str
    node: str
    started_at: float
    services: list[str]


class ServiceStatus(Struct, frozen=True):
    """One service of the stack."""

    service: str
    ready: bool


class StackStatus(Struct, frozen=True):
    """The stack and its services."""

    stack: StackInfo
    services: list[ServiceStatus]

    @property
    def ready(self) -> bool:
        return all(service.ready for service in self.services)


def default_data_dir() -> Path:
    """`LLMOS_DATA_DIR`, or `.llmos` in the working directory."""
    return Path(os.environ.get("LLMOS_DATA_DIR") or ".llmos")


def find_stack(data_dir: Path | None = None) -> StackInfo | None:
    """The running stack of a data directory, or `None`."""
    run = (data_dir or default_data_dir()) / "run"
    try:
        info = msgspec.json.decode((run / "stack.json").read_bytes(), type=StackInfo)
        with (run / "up.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)  # a stack holds it for as long as it lives
    except BlockingIOError:
        return info
    except (OSError, msgspec.DecodeError):
        return None
    return None


def status(data_dir: Path | None = None) -> StackStatus:
    """Which services of the stack are ready. Raises `NotFound` when none runs."""
    info = find_stack(data_dir)
    if info is None:
        raise NotFound(f"no stack runs in {data_dir or default_data_dir()}", remedy="Start one with `llmos up`.")
    now = time.time()
    return StackStatus(info, [ServiceStatus(name, is_ready(Path(info.data_dir), name, now)) for name in info.services])


def down(data_dir: Path | None = None) -> int:
    """Stop the stack and wait for its end. Raises `NotFound` when none runs, `Busy` when it does not stop."""
    info = status(data_dir).stack
    os.kill(info.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_WITHIN_S
    while time.monotonic() < deadline:
        if find_stack(Path(info.data_dir)) is None:
            return 0
        time.sleep(0.05)
    raise Busy(f"the stack (pid {info.pid}) did not stop within {STOP_WITHIN_S:g} s", remedy=f"kill -9 {info.pid}")


def run_service(name: str) -> int:
    """Become one service, configured by the environment: `python -m llmos_<service>`. Does not return on success."""
    if name not in SERVICES:
        raise Rejected(f"there is no service {name!r}", remedy=f"Choose one of: {', '.join(sorted(SERVICES))}.")
    missing = _missing(name)
    if missing:
        raise Fatal(f"{name} needs {', '.join(missing)}", remedy=f"pip install 'llmos[{name}]'")
    os.execv(sys.executable, [sys.executable, "-m", _module(name)])


def up(options: UpOptions) -> int:
    """Run the stack; the exit status. Raises `Fatal` with the remedy when it can't start."""
    if options.detach:
        return _detach(options)
    return asyncio.run(_Stack(options).run())


def _module(name: str) -> str:
    return "llmos_" + name.replace("-", "_")


def _missing(name: str) -> list[str]:
    return [module for module in SERVICES[name] if find_spec(module) is None]


def _detach(options: UpOptions) -> int:
    data_dir = options.data_dir.absolute()
    (data_dir / "logs").mkdir(parents=True, exist_ok=True)
    foreground = msgspec.structs.replace(options, data_dir=data_dir, detach=False, quiet=True)
    program = "import sys; from llmos import local; sys.exit(local.up_quietly(sys.argv[1]))"
    argument = msgspec.json.encode(foreground, enc_hook=str).decode()
    with (data_dir / "logs" / "up.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", program, argument],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    deadline = time.monotonic() + 60
    info = None
    while time.monotonic() < deadline and process.poll() is None:
        info = find_stack(data_dir)
        if info is not None and info.pid == process.pid and status(data_dir).ready:
            return 0
        time.sleep(0.1)
    if process.poll() is None:
        late = (
            [service.service for service in status(data_dir).services if not service.ready] if info else ["nats-server"]
        )
        raise Busy(f"{', '.join(late)} not ready after 60 s", remedy=f"See {data_dir}/logs, or `llmos down`.")
    why = (data_dir / "logs" / "up.log").read_text().strip().splitlines()[-1:]
    raise Fatal(f"the stack did not start: {''.join(why)}", remedy=f"See {data_dir}/logs.")


def up_quietly(options: str) -> int:
    """The detached stack's own `up`: an error becomes the last line of its log."""
    try:
        return up(decode_options(options))
    except LlmosError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def decode_options(text: str) -> UpOptions:
    """Read options that `_detach` wrote."""
    return msgspec.json.decode(text, type=UpOptions, dec_hook=lambda kind, value: kind(value))


class _Stack:
    def __init__(self, options: UpOptions) -> None:
        self._options = options
        self._data = options.data_dir.absolute()
        wanted = options.services or tuple(SERVICES)
        unknown = sorted(set(wanted) - set(SERVICES))
        if unknown:
            raise Rejected(f"there is no service {unknown[0]!r}", remedy=f"Choose from: {', '.join(SERVICES)}.")
        self._absent = {name: _missing(name) for name in wanted if _missing(name)}
        self._services = [name for name in wanted if name not in self._absent]
        self._processes: list[Process] = []

    async def run(self) -> int:
        (self._data / "run").mkdir(parents=True, exist_ok=True)
        with (self._data / "run" / "up.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise Fatal(f"a stack runs in {self._data} already", remedy="Stop it with `llmos down`.") from None
            for stale in (self._data / "run").glob("*.ready"):
                stale.unlink(missing_ok=True)
            try:
                return await self._supervise()
            finally:
                (self._data / "run" / "stack.json").unlink(missing_ok=True)

    async def _supervise(self) -> int:
        options = self._options
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        nats_url = options.nats_url or os.environ.get("NATS_URL", "")
        server: Process | None = None
        if not nats_url:
            server, nats_url = await server_process(self._data, self._say)
        info = StackInfo(
            pid=os.getpid(),
            data_dir=str(self._data),
            nats_url=nats_url,
            gateway_url=f"http://127.0.0.1:{options.http_port or free_port()}" if "gateway" in self._services else "",
            artifacts=options.artifacts or (self._data / "artifacts").as_uri(),
            node=options.node or os.uname().nodename.replace(".", "-"),
            started_at=time.time(),
            services=self._services,
        )
        (self._data / "run" / "stack.json").write_bytes(msgspec.json.encode(info))
        for name, missing in self._absent.items():
            self._say("llmos", f"{name} is left out: {', '.join(missing)} not installed (pip install 'llmos[{name}]')")
        env = self._environment(info)
        self._processes = [
            Process(name, [sys.executable, "-m", _module(name)], env, self._data / "logs" / f"{name}.log", self._say)
            for name in self._services
        ]
        announced = asyncio.create_task(self._announce(info))
        tasks = [asyncio.create_task(process.supervise()) for process in self._processes]
        watching = [asyncio.create_task(self._watch(process, stop)) for process in self._processes]
        try:
            await stop.wait()
            self._say("llmos", "stopping")
        finally:
            await cancel(announced, *watching)
            await asyncio.gather(*(process.stop() for process in self._processes))
            await cancel(*tasks)
            if server is not None:
                await server.stop()
        self._say("llmos", "stopped")
        for process in self._processes:
            if process.refused.is_set():
                raise Fatal(
                    f"{process.name} can't start: {process.last_line}",
                    remedy=f"See {self._data}/logs/{process.name}.log.",
                )
        return 0

    @staticmethod
    async def _watch(process: Process, stop: asyncio.Event) -> None:
        await process.refused.wait()
        stop.set()

    async def _announce(self, info: StackInfo) -> None:
        while not all(is_ready(self._data, name, time.time()) for name in self._services):  # noqa: ASYNC110  # files
            await asyncio.sleep(0.1)
        self._say("llmos", f"ready: bus {info.nats_url}, http {info.gateway_url or 'none'}, data {self._data}")

    def _environment(self, info: StackInfo) -> dict[str, str]:
        roots = self._options.file_roots or (Path.cwd(),)
        port = info.gateway_url.rsplit(":", 1)[-1]
        vault = self._data / "vault"
        vault.mkdir(mode=0o700, exist_ok=True)
        mine = {
            "LLMOS_NATS_URL": info.nats_url,
            "LLMOS_NODE": info.node,
            "LLMOS_DATA_DIR": info.data_dir,
            "LLMOS_ARTIFACTS": info.artifacts,
            "LLMOS_FILE_ROOTS": os.pathsep.join(str(root.absolute()) for root in roots),
            "LLMOS_HTTP_PORT": port,
            "LLMOS_ROOT_KEY_FILE": str(vault / "root.key"),
            "LLMOS_CREATE_ROOT": "true",
            "LLMOS_TRUST_FILE": str(vault / "trusted_keys.json"),
            "LLMOS_TRUSTED_KEYS": str(vault / "trusted_keys.json"),
            "LLMOS_DRAIN_S": "6",
        }
        return os.environ | mine

    def _say(self, source: str, line: str) -> None:
        if not self._options.quiet:
            with suppress(BrokenPipeError):
                sys.stderr.write(f"{source:>11} | {line}\n")
                sys.stderr.flush()
