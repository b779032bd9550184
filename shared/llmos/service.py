"""A service's life: start, serve, drain, cancel; the same for every room.

`main` runs a service as a process; `running` runs one inside a test. A service is one coroutine, `serve(context)`,
that returns after `context.stopping` is set; what it has not finished within `drain_s` is cancelled.
"""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec
import structlog
from msgspec import Struct

from llmos import config as configuration
from llmos.artifacts import ArtifactStore, open_store
from llmos.bus import Bus
from llmos.cancel import cancel
from llmos.clock import Clock, SystemClock
from llmos.contracts.nodes import HEARTBEAT_S, Heartbeat
from llmos.errors import LlmosError
from llmos.ids import is_token, new_id
from llmos.telemetry import Telemetry, configure_logging

READY_FRESH_S = 15.0
RETIRE_WITHIN_S = 2.0


def _hostname() -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in os.uname().nodename) or "node"


class ServiceConfig(Struct, frozen=True, kw_only=True):
    """What every service is told. Set by `LLMOS_<FIELD>` or the file that `LLMOS_CONFIG` names.

    `artifacts` is `file:///dir` or `s3://bucket/prefix`; empty means a directory under `data_dir`. `node` is one
    subject token, the hostname by default. `drain_s` is how long a stopping service may take to finish, in seconds.
    """

    nats_url: str = "nats://127.0.0.1:4222"
    nats_credentials: str = ""
    node: str = msgspec.field(default_factory=_hostname)
    data_dir: Path = Path(".llmos")
    artifacts: str = ""
    log_level: str = "info"
    log_format: str = "console"
    drain_s: float = 8.0


C = TypeVar("C", bound=ServiceConfig)


class Context(Generic[C]):
    """What a running service has in hand."""

    def __init__(
        self, name: str, config: C, bus: Bus, store: ArtifactStore, telemetry: Telemetry, clock: Clock
    ) -> None:
        self.name = name
        self.config = config
        self.bus = bus
        self.store = store
        self.telemetry = telemetry
        self.clock = clock
        self.node = config.node
        self.stopping = asyncio.Event()
        self.log: Any = structlog.get_logger(name).bind(service=name)
        self.instance = new_id("i")  # of this process, for as long as it runs
        self._beat: asyncio.Task[None] | None = None
        self._beating = asyncio.Lock()

    @property
    def principal(self) -> str:
        """`<service>/<node>`: who this is, to the vault and in events."""
        return f"{self.name}/{self.node}"

    def announce(
        self,
        *,
        kinds: Sequence[str] = (),
        memory: int = 0,
        used: Callable[[], int] | None = None,
        load: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Say that the service is ready: a heartbeat every 5 s in the bucket `nodes`, and a fresh ready file."""
        if self._beat is None:
            self._beat = asyncio.create_task(self._heartbeat(list(kinds), memory, used, load))

    async def _heartbeat(
        self,
        kinds: list[str],
        memory: int,
        used: Callable[[], int] | None,
        load: Callable[[], dict[str, float]] | None,
    ) -> None:
        key = f"{self.node}.{self.name}"
        ready = ready_file(self.config.data_dir, self.name)
        ready.parent.mkdir(parents=True, exist_ok=True)
        try:
            while True:
                beat = Heartbeat(
                    node=self.node,
                    service=self.name,
                    instance=self.instance,
                    at=self.clock.now(),
                    kinds=kinds,
                    memory=memory,
                    used=used() if used else 0,
                    load=load() if load else {},
                )
                try:
                    async with self._beating:
                        await self.bus.bucket("nodes").put(key, beat)
                    ready.write_bytes(msgspec.json.encode(beat))
                except (LlmosError, OSError) as error:
                    self.log.warning("no heartbeat", error=str(error))
                await asyncio.sleep(HEARTBEAT_S)
        finally:
            ready.unlink(missing_ok=True)

    async def retire(self) -> None:
        """Take the heartbeat back, so that nobody waits 20 s to learn that a stopped service is gone.

        One that is on its way is waited for, lest it arrive after that; a successor's heartbeat stays.
        """
        if self._beat is None:
            return
        with suppress(LlmosError, TimeoutError):  # a bus that is away forgets the heartbeat by itself
            async with asyncio.timeout(RETIRE_WITHIN_S), self._beating:
                await cancel(self._beat)
                bucket, key = self.bus.bucket("nodes"), f"{self.node}.{self.name}"
                entry = await bucket.get(key, Heartbeat)
                if entry is not None and entry.value.instance == self.instance:
                    await bucket.delete(key, entry.revision)
        await cancel(self._beat)


Serve = Callable[[Context[C]], Awaitable[None]]


def ready_file(data_dir: Path, name: str) -> Path:
    """The file that a ready service keeps fresh (rewritten every 5 s, removed at its end)."""
    return data_dir / "run" / f"{name}.ready"


def is_ready(data_dir: Path, name: str, now: float) -> bool:
    """Whether a service of this machine is ready: its file exists and was written within 15 s."""
    try:
        return now - ready_file(data_dir, name).stat().st_mtime < READY_FRESH_S
    except OSError:
        return False


@asynccontextmanager
async def running(name: str, config: C, serve: Serve[C], *, clock: Clock | None = None) -> AsyncIterator[Context[C]]:
    """Run a service in this event loop until the block ends; then drain it. What it raises is raised here."""
    if not is_token(config.node):
        raise LlmosError(
            f"node {config.node!r} is not one word", remedy="Set LLMOS_NODE to letters, digits, '_' or '-'."
        )
    telemetry = Telemetry(name, config.node)
    clock = clock or SystemClock()
    async with AsyncExitStack() as stack:
        stack.callback(telemetry.close)
        config.data_dir.mkdir(parents=True, exist_ok=True)
        store = open_store(config.artifacts or (config.data_dir.absolute() / "artifacts").as_uri())
        bus = await Bus.connect(
            config.nats_url,
            source=f"{name}/{config.node}",
            telemetry=telemetry,
            clock=clock,
            credentials=config.nats_credentials,
        )
        stack.push_async_callback(bus.close)
        context = Context(name, config, bus, store, telemetry, clock)
        task = asyncio.ensure_future(serve(context))
        task.add_done_callback(lambda _: context.stopping.set())
        try:
            yield context
        finally:
            context.stopping.set()
            done, _ = await asyncio.wait({task}, timeout=config.drain_s)
            if not done:
                context.log.warning("did not drain in time", after_s=config.drain_s)
                await cancel(task)
            await context.retire()
            if not task.cancelled():
                task.result()


async def _run(name: str, config: C, serve: Serve[C]) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    entering = asyncio.current_task()  # what waits for a bus that may be away; `None` once it has not to wait any more

    def on_signal() -> None:
        stop.set()
        if entering is not None:
            entering.cancel()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    async with running(name, config, serve) as context:
        entering = None
        context.log.info("started", node=config.node, bus=config.nats_url)
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait(
            {stopped, asyncio.ensure_future(context.stopping.wait())}, return_when=asyncio.FIRST_COMPLETED
        )
        if stop.is_set():
            context.log.info("stopping")


def main(name: str, config: type[C], serve: Serve[C]) -> int:
    """Run a service as this process until SIGTERM or SIGINT; the exit status (78 for a bad setting, 69 when the bus
    can't be reached, as in sysexits.h)."""
    try:
        value = configuration.load(config, section=name.replace("-", "_"))
        configure_logging(value.log_level, value.log_format)
    except (LlmosError, KeyError) as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 78
    try:
        import uvloop
    except ImportError:
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        with runner:
            runner.run(_run(name, value, serve))
    except asyncio.CancelledError:  # told to stop before it had started
        structlog.get_logger(name).info("stopped before it had started", service=name)
    except LlmosError as error:
        structlog.get_logger(name).error("stopped", service=name, error=str(error))
        return 78 if error.problem.code == "fatal" else 69
    return 0
