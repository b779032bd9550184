"""A real nats-server, scheduler processes and no-op workers, for benches of the scheduler and tests of its faults.

The workers live in the process of their caller: they take every assignment, say `TaskStarted`, `TaskSucceeded` (and
`ModelExported` for an export) at one wait, and ack. Schedulers are processes of their own, as they are in a stack.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from llmos.bus import Bus, Delivery, Heard, Message
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.jobs import JobSucceeded
from llmos.contracts.leader import LeaderElected
from llmos.contracts.models import ModelExported, ModelVersion
from llmos.contracts.nodes import Heartbeat, Inventory, NodeInventoried
from llmos.contracts.tasks import (
    KINDS,
    TaskAssigned,
    TaskCancelled,
    TaskFailed,
    TaskLost,
    TaskPlaced,
    TaskStarted,
    TaskSucceeded,
)
from llmos.ids import new_id
from llmos.natsserver import NatsServer

SPEC: dict[str, Any] = {
    "name": "mood",
    "model": {"base": "hf:org/base"},
    "data": {"train": "file:///d.csv"},
    "resources": {"cpus": 1, "memory": "64MiB"},
}
OUTPUTS = {"check": {"dataset": "sha256:d", "base": "sha256:b"}, "train": {"model": "sha256:m"}}
TICK = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Processor seconds that a process took so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def resident_mb(pid: int) -> float:
    """Megabytes of memory that a process holds."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class SchedulerProcess:
    """One scheduler under a node's name of its own; what it logs is in `<folder>/<name>.log`."""

    def __init__(self, name: str, url: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        env = os.environ | {
            "LLMOS_NATS_URL": url,
            "LLMOS_NODE": name,
            "LLMOS_DATA_DIR": str(folder / name),
            "LLMOS_ARTIFACTS": (folder / "artifacts").as_uri(),
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "llmos_scheduler"], env=env, stdout=log, stderr=log)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Signal it and wait for its end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(20)


class Leases:
    """Hears the history, and notes what must never be: a task or a resource that is given away twice."""

    def __init__(self, cpus: int) -> None:
        self.cpus = cpus  # of each node
        self.wrong: list[str] = []
        self.placed: list[tuple[float, Heard, TaskPlaced]] = []  # and when each was heard (monotonic)
        self.elected: list[tuple[Heard, LeaderElected]] = []
        self.ended: set[str] = set()
        self._held: dict[str, TaskPlaced] = {}
        self._newest = 0

    async def run(self, bus: Bus) -> None:
        async for heard in bus.follow("EVENTS"):
            self.on_event(heard, heard.event())

    def on_event(self, heard: Heard, event: Struct | None) -> None:
        """The next fact of the history."""
        match event:
            case LeaderElected():
                self.elected.append((heard, event))
            case TaskPlaced():
                self._on_placed(heard, event)
            case TaskSucceeded() | TaskLost() | TaskFailed() | TaskCancelled():
                if event.task in self._held and self._held[event.task].lease == event.lease:
                    del self._held[event.task]
            case JobSucceeded():
                if event.job in self.ended:
                    self.wrong.append(f"{event.job} ended twice")
                self.ended.add(event.job)

    def _on_placed(self, heard: Heard, event: TaskPlaced) -> None:
        self.placed.append((time.monotonic(), heard, event))
        if event.task in self._held:
            self.wrong.append(f"{event.task} was placed while it held a lease")
        if event.lease <= self._newest:
            self.wrong.append(f"lease {event.lease} was given twice")
        self._newest = max(self._newest, event.lease)
        self._held[event.task] = event
        here = [held for held in self._held.values() if held.node == event.node and held.kind != "check"]
        if sum(held.cpus for held in here) > self.cpus:
            self.wrong.append(f"{event.node} is over-committed at {heard.sequence}")


class Workers:
    """No-op workers for every kind on `nodes` nodes."""

    def __init__(self, bus: Bus, nodes: int, cpus: int = 1000, takes_s: float = 0.0) -> None:
        self.bus = bus
        self.names = [f"w{number}" for number in range(nodes)]
        self.cpus = cpus
        self.takes_s = takes_s  # how long a batch of tasks runs
        self.taken: list[tuple[str, int]] = []  # task and lease of every assignment that came
        self._hands: set[asyncio.Task[None]] = set()
        self._at_hand: list[Delivery[TaskAssigned]] = []
        self._news = asyncio.Event()

    async def run(self) -> None:
        for name in self.names:
            await self.bus.emit(NodeInventoried(name, 1, Inventory(self.cpus, self.cpus << 30)), id=f"{name}.inventory")
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            group.create_task(self._work())
            for name in self.names:
                for kind in KINDS:
                    group.create_task(self._take(kind, name))

    async def _beat(self) -> None:
        while True:
            for name in self.names:
                beat = Heartbeat(name, "worker", "i", time.time(), list(KINDS))
                await self.bus.bucket("nodes").put(f"{name}.worker", beat)
            await asyncio.sleep(4)

    async def _take(self, kind: str, node: str) -> None:
        consumer, filter = subjects.work_consumer(kind, node)
        async for delivery in self.bus.work("WORK", consumer, filter, TaskAssigned, slots=lambda: 256):
            self._at_hand.append(delivery)
            self._news.set()

    async def _work(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            batch, self._at_hand = self._at_hand, []
            if self.takes_s:
                hand = asyncio.create_task(self._do(batch))
                self._hands.add(hand)
                hand.add_done_callback(self._hands.discard)
            else:
                await self._do(batch)

    async def _do(self, batch: list[Delivery[TaskAssigned]]) -> None:
        self.taken += [(given.body.task, given.body.lease) for given in batch]
        facts = [self._facts(given.body, given.subject.split(".")[3]) for given in batch]
        if self.takes_s:
            await self.bus.store_many([said[0] for said in facts])
            await asyncio.sleep(self.takes_s)
        await self.bus.store_many([fact for said in facts for fact in (said[1:] if self.takes_s else said)])
        for given in batch:
            await given.ack()

    def _facts(self, task: TaskAssigned, node: str) -> list[Message]:
        head = (task.task, task.job, task.tenant, task.kind, task.lease, node)
        facts = [self.bus.fact(TaskStarted(*head))]
        if task.kind == "export":
            version = ModelVersion(task.spec.name, 1, task.tenant, task.spec.task, "sha256:o", task.job, 0.0)
            facts.append(self.bus.fact(ModelExported(version), id=f"{task.job}.exported"))
        outputs = OUTPUTS.get(task.kind, {"model": "sha256:o"})
        facts.append(self.bus.fact(TaskSucceeded(*head, outputs), id=f"{task.task}.{task.lease}.succeeded"))
        return facts


async def submit(bus: Bus, count: int, tenant: str = "acme", **fields: Any) -> list[str]:
    """Publish jobs at one wait; their ids."""
    data = msgspec.json.encode(SPEC | fields)
    jobs = [new_id("j") for _ in range(count)]
    await bus.store_many([Message(subjects.job_submit(tenant, job), data, {"Nats-Msg-Id": job}) for job in jobs])
    return jobs


@asynccontextmanager
async def cluster(
    folder: Path, nodes: int = 4, *, cpus: int = 1000, takes_s: float = 0.0
) -> AsyncIterator[tuple[NatsServer, Bus, Workers]]:
    """A server, a bystander's bus and running workers."""
    server = await NatsServer(folder / "nats").start()
    bus, worker_bus = [await Bus.connect(server.url, source=f"bench/{name}") for name in ("driver", "worker")]
    workers = Workers(worker_bus, nodes, cpus, takes_s)
    working = asyncio.create_task(workers.run())
    try:
        yield server, bus, workers
    finally:
        await cancel(working)
        for connection in (bus, worker_bus):
            await connection.close()
        await server.stop()
