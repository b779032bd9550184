"""How long an idle scheduler takes: from the publish of a job to the placement of its first task and to its hand-over.

python tests/bench/scheduler_latency.py [jobs]
"""

import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import uvloop

from llmos.bus import Bus
from llmos.contracts.nodes import Heartbeat, Inventory, NodeInventoried
from llmos.contracts.tasks import TaskAssigned, TaskPlaced, TaskRejected, TaskStarted
from llmos.ids import new_id
from llmos.natsserver import NatsServer
from llmos.service import running
from llmos_scheduler.config import SchedulerConfig
from llmos_scheduler.service import serve

SPEC = {"name": "mood", "model": {"base": "hf:org/base"}, "data": {"train": "file:///d.csv"}}


async def measure(jobs: int, folder: Path) -> None:
    server = await NatsServer(folder / "nats").start()
    bus = await Bus.connect(server.url, source="bench/a")
    submitted: dict[str, float] = {}
    placed: dict[str, float] = {}
    assigned: dict[str, float] = {}

    async def hear() -> None:
        async for heard in bus.follow("EVENTS", ["llmos.evt.task.placed.>"]):
            event = heard.event()
            if isinstance(event, TaskPlaced):
                placed[event.job] = time.perf_counter()

    async def work() -> None:
        async for delivery in bus.work("WORK", "check-a", "llmos.work.check.a.*", TaskAssigned, slots=lambda: 8):
            task = delivery.body
            assigned[task.job] = time.perf_counter()
            await bus.emit(TaskStarted(task.task, task.job, task.tenant, task.kind, task.lease, "a"))
            await bus.emit(TaskRejected(task.task, task.job, task.tenant, task.lease, "a"))
            await delivery.ack()

    config = SchedulerConfig(nats_url=server.url, node="head", data_dir=folder / "head")
    async with running("scheduler", config, serve):
        peers = [asyncio.create_task(hear()), asyncio.create_task(work())]
        await bus.emit(NodeInventoried("a", 1, Inventory(2, 4 << 30)))
        await bus.bucket("nodes").put("a.trainer", Heartbeat("a", "trainer", "i", time.time(), ["check", "train"]))
        await asyncio.sleep(1)
        for _ in range(jobs):
            job = new_id("j")
            submitted[job] = time.perf_counter()
            await bus.store(f"llmos.job.submit.acme.{job}", msgspec.json.encode(SPEC), {"Nats-Msg-Id": job})
            await asyncio.sleep(0.05)
        await asyncio.sleep(1)
        for peer in peers:
            peer.cancel()
    await bus.close()
    await server.stop()
    for name, at in (("placed", placed), ("handed over", assigned)):
        times = sorted(1000 * (at[job] - began) for job, began in submitted.items())
        tail = times[int(0.99 * (len(times) - 1))]
        print(f"publish to {name}: p50 {statistics.median(times):.1f} ms, p99 {tail:.1f} ms ({len(times)} jobs)")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        uvloop.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 100, Path(name)))
