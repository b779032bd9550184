"""From the publish of a job to its first TaskStarted on an idle stack, seen by an outside client.

    python tests/bench/noop_overhead.py [RUNS]

Starts a stack of its own, submits jobs one after another (each is cancelled once it started), prints the median.
"""

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import nats

from llmos import local
from material import write_base, write_rows
from outsider import Outsider


async def measure(info: local.StackInfo, material: Path, runs: int) -> list[float]:
    nc = await nats.connect(info.nats_url)
    outsider = Outsider(nc, material)
    taken = []
    events = await nc.subscribe("llmos.evt.task.started.default.*")
    for number in range(runs + 3):
        job = f"noop-{number}"
        began = time.perf_counter()
        await outsider.js.publish(f"llmos.job.submit.default.{job}", json.dumps(outsider.spec(deploy=None)).encode())
        while True:
            message = await events.next_msg(timeout=30)
            if json.loads(message.data)["job"] == job:
                break
        if number >= 3:
            taken.append((time.perf_counter() - began) * 1000)
        await outsider.history(job)
    await nc.close()
    return taken


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as folder:
        material = Path(folder) / "material"
        material.mkdir()
        write_base(material / "base")
        for name, rows in (("train", 32), ("validation", 8), ("test", 8)):
            write_rows(material / f"{name}.jsonl", rows, 1)
        data = Path(folder) / "stack"
        local.up(local.UpOptions(data_dir=data, file_roots=(material,), node="n1", detach=True))
        try:
            taken = asyncio.run(measure(local.status(data).stack, material, runs))
        finally:
            local.down(data)
    taken.sort()
    print(f"publish → TaskStarted over {runs} jobs: p50 {statistics.median(taken):.1f} ms, max {taken[-1]:.1f} ms")


if __name__ == "__main__":
    main()
