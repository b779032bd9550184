"""Jobs a second from submit to done, through one scheduler process on the real bus with no-op workers, and what it
costs as jobs that wait grow in number.

python tests/bench/scheduler_throughput.py [--jobs 3000] [--pending 0 1000 10000 100000]

A job is three tasks (check, train, export): 12 facts, of which the scheduler says five, three assignments, and one
submission. The jobs that wait have passed their check and ask for more cpus than any node has.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from contextlib import aclosing
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from llmos.bus import Bus
from llmos.contracts.jobs import JobSucceeded
from llmos.contracts.subjects import event_filter
from llmos.contracts.tasks import TaskSucceeded
from noop_cluster import SchedulerProcess, cluster, cpu_s, resident_mb, submit


async def ended(bus: Bus, kind: type, start: int, count: int, prefix: str = "") -> None:
    """Wait until `count` facts of a kind were said from sequence `start` on."""
    async with aclosing(bus.follow("EVENTS", [event_filter(kind)], start=start)) as events:
        async for heard in events:
            if prefix in heard.subject:
                count -= 1
            if count <= 0:
                return


async def measure(jobs: int, levels: list[int], folder: Path) -> None:
    async with cluster(folder) as (server, bus, _):
        scheduler = SchedulerProcess("head", server.url, folder)
        try:
            await asyncio.sleep(3)
            waiting = 0
            print(f"{'pending':>8} {'jobs/s':>8}   CPU ms a job: scheduler, server, workers and driver; scheduler's MB")
            for level in levels:
                began = time.perf_counter()
                while waiting < level:
                    start = await bus.last_sequence("EVENTS") + 1
                    count = min(2000, level - waiting)
                    await submit(bus, count, tenant="patient", resources={"cpus": 2000, "memory": "64MiB"})
                    await ended(bus, TaskSucceeded, start, count, ".patient.")
                    waiting += count
                filled = time.perf_counter() - began
                await asyncio.sleep(1)
                start = await bus.last_sequence("EVENTS") + 1
                pids = (scheduler.process.pid, server.pid, os.getpid())
                before, began = [cpu_s(pid) for pid in pids], time.perf_counter()
                await asyncio.gather(submit(bus, jobs), ended(bus, JobSucceeded, start, jobs))
                took = time.perf_counter() - began
                cost = [1000 * (cpu_s(pid) - then) / jobs for pid, then in zip(pids, before, strict=True)]
                shown = " ".join(f"{each:>9.2f}" for each in cost)
                print(
                    f"{waiting:>8} {jobs / took:>8.0f}   {shown} {resident_mb(pids[0]):>9.0f}"
                    + (f"   (filled in {filled:.0f} s)" if filled > 1 else ""),
                    flush=True,
                )
        finally:
            scheduler.end()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=3000)
    parser.add_argument("--pending", type=int, nargs="+", default=[0, 1000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        uvloop.run(measure(options.jobs, options.pending, Path(name)))


if __name__ == "__main__":
    main()
