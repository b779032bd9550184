"""What a hw-agent costs while it runs: CPU as a share of one core, and resident memory.

    python tests/bench/hw_agent_cost.py [seconds]

Starts a nats-server and an agent of its own, lets the agent settle for 5 s, then measures (default 120 s; the kernel's
own nanosecond account of every thread, not sampled ticks). Exits 1 above 0.5 % of a core or 60 MB.
"""

import asyncio
import os
import sys
import tempfile
from pathlib import Path

import psutil

from llmos.natsserver import NatsServer

SETTLE_S = 5.0
MAX_SHARE = 0.005
MAX_BYTES = 60_000_000


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads; ticks of 10 ms where the kernel keeps no finer account."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9
    except OSError:
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)


async def measure(seconds: float) -> int:
    with tempfile.TemporaryDirectory() as folder:
        server = await NatsServer(Path(folder) / "nats").start()
        env = os.environ | {"LLMOS_NATS_URL": server.url, "LLMOS_DATA_DIR": f"{folder}/data", "LLMOS_NODE": "bench"}
        agent = await asyncio.create_subprocess_exec(sys.executable, "-m", "llmos_hw_agent", env=env)
        try:
            await asyncio.sleep(SETTLE_S)
            before = cpu_seconds(agent.pid)
            await asyncio.sleep(seconds)
            share = (cpu_seconds(agent.pid) - before) / seconds
            resident = psutil.Process(agent.pid).memory_info().rss
        finally:
            agent.terminate()
            await agent.wait()
            await server.stop()
    print(f"cpu {share:.3%} of a core over {seconds:g} s, resident {resident / 1e6:.1f} MB")
    return int(share > MAX_SHARE or resident > MAX_BYTES)


if __name__ == "__main__":
    sys.exit(asyncio.run(measure(float(sys.argv[1]) if len(sys.argv) > 1 else 120.0)))
