"""What the bus and the service add to the bare model call, with one client: `python
tests/bench/inferencer_overhead.py`.

Bare calls (tokenise, run, read, in this process) and requests (this process → nats-server → inferencer →
nats-server → this process) alternate, so that both see the same machine. Exit status 1 when the median request
costs over 2 ms more.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

import inferencer_model
from inferencer_stand import Stand

from llmos_inferencer.config import usable_cores
from llmos_inferencer.encoding.labels import Classifier
from llmos_inferencer.engine import Means, load

LIMIT_MS = 2.0


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--precision", choices=["fp32", "int8"], default="fp32")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        stand = Stand(Path(folder))
        try:
            artifact = await stand.prepare(given.precision)
            await stand.start()
            return await measure(stand, load(artifact, Means(usable_cores())), given.requests)
        finally:
            await stand.close()


async def measure(stand: Stand, engine: Classifier, requests: int) -> int:
    bare: list[float] = []
    through: list[float] = []
    compute: list[float] = []
    for at in range(requests + 20):
        text = f"{inferencer_model.SENTENCE} {at}"
        started = time.perf_counter()
        engine.answer([text])
        between = time.perf_counter()
        answer = await stand.ask(text)
        ended = time.perf_counter()
        if at >= 20:
            bare.append((between - started) * 1000)
            through.append((ended - between) * 1000)
            compute.append(answer.compute_ms)
    for name, values in (("bare call", bare), ("through the bus", through), ("  of it computing", compute)):
        ordered = sorted(values)
        print(f"{name:20s} p50 {statistics.median(values):6.2f} ms   p99 {ordered[int(len(ordered) * 0.99)]:6.2f} ms")
    more = statistics.median(through) - statistics.median(bare)
    ratio = statistics.median(through) / statistics.median(bare)
    print(f"{'more at the median':20s}     {more:6.2f} ms   (limit {LIMIT_MS}), ratio {ratio:.2f}")
    return int(more > LIMIT_MS)


if __name__ == "__main__":
    try:
        import uvloop

        sys.exit(uvloop.run(main()))
    except ImportError:
        sys.exit(asyncio.run(main()))
