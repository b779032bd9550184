"""How long a scheduler takes from its start until it leads, with a long history: with and without a snapshot.

python tests/bench/scheduler_start.py [events]

The history is `scheduler_fold`'s, stored in EVENTS of a real nats-server. The first start reads all of it and leaves a
snapshot when it is stopped; the second reads that and the tail.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from scheduler_fold import history

from llmos.bus import Bus, Message
from llmos.contracts.leader import LeaderElected
from llmos.contracts.subjects import event_subject
from llmos.natsserver import NatsServer
from noop_cluster import SchedulerProcess, cpu_s, resident_mb

ELECTED = event_subject(LeaderElected("", 0))
BATCH = 5_000


async def fill(bus: Bus, events: int) -> None:
    batch: list[Message] = []
    for heard in history(events, 20):
        batch.append(Message(heard.subject, heard.data, {**heard.headers, "Nats-Msg-Id": heard.id}))
        if len(batch) == BATCH:
            await bus.store_many(batch)
            batch = []
    await bus.store_many(batch)


async def measure(events: int, folder: Path) -> None:
    server = await NatsServer(folder / "nats").start()
    bus = await Bus.connect(server.url, source="bench/driver")
    await fill(bus, events)
    for what in ("the whole history", "snapshot and tail"):
        before, began = await bus.last_sequence("EVENTS", ELECTED), time.perf_counter()
        scheduler = SchedulerProcess("head", server.url, folder)
        while await bus.last_sequence("EVENTS", ELECTED) == before:
            await asyncio.sleep(0.02)
        took, cpu = time.perf_counter() - began, cpu_s(scheduler.process.pid)
        held = resident_mb(scheduler.process.pid)
        print(f"{what}: leads after {took:.1f} s ({cpu:.1f} s of CPU), {held:.0f} MB", flush=True)
        await asyncio.sleep(1)
        began = time.perf_counter()
        scheduler.end()
        print(f"  stopped in {time.perf_counter() - began:.1f} s")
    await bus.close()
    await server.stop()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        uvloop.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000, Path(name)))
