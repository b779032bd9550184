"""Placements a second on one core: 10,000 nodes, 100,000 pending tasks; few shapes, and thousands of them.

python tests/bench/placement_speed.py [nodes [tasks]]

Every task is tried until the cluster is full; then leases end at random and the tasks that this wakes are placed.
Ends with 1 if a bar is missed: 5,000 placements/s with few shapes, 1,500 with 2,000 or more, p99 of one decision 5 ms.
"""

import os
import sys
import time
from collections import Counter, deque
from random import Random

from llmos_scheduler.cluster import Cluster, Device, Machine, Shape
from llmos_scheduler.placer import Placement, Placer

KINDS = [  # share of the nodes, hardware
    (45, Machine(96_000, 393_216, (Device("A10"),) * 8)),
    (32, Machine(104_000, 524_288, (Device("T4"),) * 2)),
    (11, Machine(64_000, 262_144, (Device("P100"),) * 2)),
    (6, Machine(96_000, 786_432, (Device("V100"),) * 8)),
    (6, Machine(128_000, 786_432, (Device("A100"),) * 8)),
]
MODELS = [frozenset[str]()] * 7 + [frozenset({"T4"}), frozenset({"A100"}), frozenset({"V100", "A100"})]


def machines(count: int, random: Random) -> list[Machine]:
    return random.choices([kind for _, kind in KINDS], weights=[share for share, _ in KINDS], k=count)


def shapes(count: int, random: Random) -> list[Shape]:
    """Distinct shapes: shared, single, several GPUs, and none."""
    found: dict[Shape, None] = {}
    while len(found) < count:
        gpus = random.choices([0, 1, 2, 4, 8], weights=[12, 80, 3, 3, 2])[0]
        milli = random.choice([1000, random.randrange(5, 100) * 10]) if gpus == 1 else 1000
        cpus = random.choice([1, 2, 3, 4, 6, 8, 10, 12]) * 1000 * max(gpus, 1)
        memory = random.choice([4, 8, 12, 16, 24, 32, 40]) * 1024 * max(gpus, 1)
        found[Shape(cpus, memory, gpus, milli, 0, random.choice(MODELS) if gpus else frozenset())] = None
    return list(found)


def run(name: str, nodes: int, tasks: int, distinct: int, bar: float) -> bool:
    random = Random(distinct)
    kinds = shapes(distinct, random)
    weights = [1 / (rank + 1) for rank in range(distinct)] if distinct < 1000 else None
    pending = random.choices(kinds, weights=weights, k=tasks)
    cluster = Cluster(machines(nodes, random))
    clock = time.process_time if len(os.sched_getaffinity(0)) < 3 else time.perf_counter
    start = clock()
    placer = Placer(cluster)
    placer.expect(Counter(pending))
    took: list[float] = []
    leases: list[tuple[Shape, Placement]] = []
    waiting: dict[Shape, deque[int]] = {}

    def place(task: int, shape: Shape) -> bool:
        before = time.perf_counter()
        placement = placer.place(shape)
        took.append(time.perf_counter() - before)
        if placement is not None:
            leases.append((shape, placement))
        return placement is not None

    for task, shape in enumerate(pending):
        if not place(task, shape):
            waiting.setdefault(shape, deque()).append(task)
    spent, placed = clock() - start, len(leases)
    allocation = 100 * cluster.allocated / cluster.capacity

    start, churned = clock(), 0
    for _ in range(tasks // 20):
        index = random.randrange(len(leases))
        leases[index], leases[-1] = leases[-1], leases[index]
        ended, placement = leases.pop()
        placer.give_back(ended, placement)
        for shape in placer.woken(placement.node):
            queue = waiting.get(shape)
            while queue and place(queue[0], shape):
                queue.popleft()
                churned += 1
    churn = clock() - start
    took.sort()
    p99 = took[int(len(took) * 0.99)]
    print(
        f"{name:<22} shapes {distinct:>5}  placed {placed:>6} of {tasks} ({allocation:.1f} % of the GPUs)"
        f"  {placed / spent:8,.0f} placements/s  p50 {took[len(took) // 2] * 1e6:5.0f} us  p99 {p99 * 1e3:.2f} ms"
        f"  max {took[-1] * 1e3:.1f} ms  | {tasks // 20} ends, {churned} woken and placed in {churn:.1f} s",
        flush=True,
    )
    return placed / spent >= bar and p99 <= 0.005


def main() -> int:
    nodes, tasks = (int(text) for text in (sys.argv[1:] + ["10000", "100000"][len(sys.argv) - 1 :]))
    few = run("few shapes", nodes, tasks, 150, 5_000)
    many = run("mixed shapes", nodes, tasks, 2_500, 1_500)
    return int(not (few and many))


if __name__ == "__main__":
    sys.exit(main())
