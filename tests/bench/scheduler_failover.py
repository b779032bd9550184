"""The leader is killed -9 under load, again and again: how long until the next placement, and is anything placed twice.

python tests/bench/scheduler_failover.py [kills] [--schedulers 3] [--rate 20]

Scheduler processes on a real nats-server, no-op workers on four nodes with eight cpus each, so many jobs a second. The
killed one is started again as a standby. Placed twice means: a task that holds a lease got another, a lease's number
came again, a node got more than it has, or an assignment was handed out again.
"""

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import uvloop

sys.path.insert(0, str(Path(__file__).parents[1]))

from llmos.bus import Bus
from llmos.cancel import cancel
from llmos.contracts.leader import LeaderLease
from noop_cluster import Leases, SchedulerProcess, cluster, submit

CPUS = 8
LIMIT_S = 10.0


async def leader_of(bus: Bus, schedulers: list[SchedulerProcess]) -> SchedulerProcess:
    """The one that holds the lease."""
    while True:
        entry = await bus.bucket("lease").get("scheduler", LeaderLease)
        found = [one for one in schedulers if entry is not None and one.name == entry.value.node]
        if found:
            return found[0]
        await asyncio.sleep(0.05)


async def load(bus: Bus, rate: float, jobs: list[str]) -> None:
    while True:
        jobs += await submit(bus, max(1, round(rate / 4)))
        await asyncio.sleep(0.25)


async def measure(kills: int, count: int, rate: float, folder: Path) -> int:
    async with cluster(folder, cpus=CPUS, takes_s=0.1) as (server, bus, workers):
        leases, jobs = Leases(CPUS), list[str]()
        schedulers = [SchedulerProcess(f"s{number}", server.url, folder) for number in range(count)]
        tasks = [asyncio.create_task(leases.run(bus)), asyncio.create_task(load(bus, rate, jobs))]
        gaps: list[float] = []
        try:
            while not leases.placed:
                await asyncio.sleep(0.05)
            for kill in range(kills):
                await asyncio.sleep(3)
                victim = await leader_of(bus, schedulers)
                terms, died = len(leases.elected), time.monotonic()
                victim.end(signal.SIGKILL)
                while len(leases.elected) == terms or leases.placed[-1][1].sequence < leases.elected[-1][0].sequence:
                    await asyncio.sleep(0.01)
                first = next(at for at, heard, _ in leases.placed if heard.sequence > leases.elected[-1][0].sequence)
                gaps.append(first - died)
                print(f"kill {kill + 1:>2} of {victim.name}: next placement after {gaps[-1]:.2f} s", flush=True)
                schedulers[schedulers.index(victim)] = SchedulerProcess(victim.name, server.url, folder)
            tasks[1].cancel()
            async with asyncio.timeout(120):
                while len(leases.ended) < len(jobs):
                    await asyncio.sleep(0.2)
        finally:
            await cancel(*tasks)
            for scheduler in schedulers:
                scheduler.end()
        handed = Counter(workers.taken)
        again = [f"{task} was handed out again" for (task, _), times in handed.items() if times > 1]
        good = sum(gap <= LIMIT_S for gap in gaps)
        print(
            f"{good} of {kills} within {LIMIT_S:g} s (median {statistics.median(gaps):.1f}, longest {max(gaps):.1f}); "
            f"{len(jobs)} jobs done, {len(leases.placed)} placements, placed twice: {len(leases.wrong + again)}"
        )
        print("\n".join([*leases.wrong, *again][:20]))
        return 0 if good == kills and not leases.wrong and not again else 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("kills", type=int, nargs="?", default=20)
    parser.add_argument("--schedulers", type=int, default=3)
    parser.add_argument("--rate", type=float, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        sys.exit(uvloop.run(measure(options.kills, options.schedulers, options.rate, Path(name))))


if __name__ == "__main__":
    main()
