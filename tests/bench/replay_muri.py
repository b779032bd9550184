"""Average JCT on a Muri trace (8 nodes of 8 GPUs) under our orders, beside what was published for it.

    python tests/bench/replay_muri.py DATA_DIR [TRACE.csv]

DATA_DIR holds `trace1.csv` of github.com/Rivendile/Muri (times in milliseconds). Exits 1 if trace1 misses a target:
durations known <= 1.01 x the published SRSF, unknown <= 0.9 x the published Tiresias.
"""

import sys
import time
from pathlib import Path

from llmos_scheduler.replay import Replay, Setting
from llmos_scheduler.replay_summary import Tally
from llmos_scheduler.replay_trace import read_cluster, read_jobs

PUBLISHED = {("srsf", False): (980_141, 1.01), ("las", True): (3_330_371, 0.9)}  # seconds, and the target's factor
RUNS = [("srsf", False), ("saf", False), ("easy", False), ("las", True), ("easy", True), ("fifo", True)]


def main(data: Path, name: str) -> int:
    arrivals, nodes = read_jobs(data / name), read_cluster("8x8")
    missed = 0
    print(f"{'policy':<8}{'durations':<11}{'average JCT':>12}{'published':>11}{'ratio':>7}{'slowdown':>10}{'took':>8}")
    for policy, blind in RUNS:
        tally, begun = Tally(64), time.perf_counter()
        for event in Replay(nodes, arrivals, Setting(policy, blind)).events():
            tally.add(event)
        took, summary = time.perf_counter() - begun, tally.summary(policy, blind)
        published, factor = PUBLISHED.get((policy, blind), (0, 0.0)) if name == "trace1.csv" else (0, 0.0)
        beside = f"{published:>11,}{summary.average_jct_s / published:>7.3f}" if published else f"{'':>18}"
        known = "unknown" if blind else "known"
        print(
            f"{policy:<8}{known:<11}{summary.average_jct_s:>12,.0f}{beside}"
            f"{summary.bounded_slowdown:>10,.1f}{took:>7.1f}s"
        )
        missed += bool(published) and summary.average_jct_s > factor * published
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "trace1.csv"))
