"""Placements a second through the planner on one core: 10,000 nodes, 100,000 pending; few shapes, and thousands.

python tests/bench/placement_speed.py [nodes [tasks]]

All tasks wait, with three priorities; plans of up to 256 starts are carried out until the cluster is full. Then leases
end at random, and each time a decision is made: who starts instead. Times are of the processor, so that they mean the
same on a busy machine. Ends with 1 if a bar is missed: 5,000 placements/s with few shapes and p99 of one decision
5 ms, 1,500 placements/s with 2,000 shapes or more.
"""

import sys
import time
from collections import Counter
from random import Random

from llmos_scheduler.cluster import Device, Machine, Shape
from llmos_scheduler.planner import Planner
from llmos_scheduler.work import Plan, Work

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


def carry_out(planner: Planner, made: Plan, now: int) -> list[str]:
    """Everything that was planned starts; its ids."""
    for start in made.starts:
        start.work.waited, start.work.since = now - start.work.since, now
        planner.run(start.work, start.places)
    return [start.work.id for start in made.starts]


def run(name: str, nodes: int, tasks: int, distinct: int, bar: float, most_ms: float) -> bool:
    random, clock = Random(distinct), time.thread_time
    kinds = shapes(distinct, random)
    weights = [1 / (rank + 1) for rank in range(distinct)] if distinct < 1000 else None
    pending = random.choices(kinds, weights=weights, k=tasks)
    planner = Planner({f"node-{place:05}": machine for place, machine in enumerate(machines(nodes, random))})
    planner.learn(Counter(pending))
    for place, shape in enumerate(pending):
        of = {"number": place, "submitted": place, "since": place, "priority": random.randrange(3)}
        planner.wait(Work(id=f"task-{place}", shape=shape, **of))  # type: ignore[arg-type]
    now, running, begun = tasks, [], clock()
    while (made := planner.plan(now)).starts:
        running += carry_out(planner, made, now)
    spent, placed = clock() - begun, len(running)

    took: list[float] = []
    churned = 0
    for _ in range(tasks // 50):
        place = random.randrange(len(running))
        running[place], running[-1] = running[-1], running[place]
        now += 1000
        begun = clock()
        planner.leave(running.pop())
        started = carry_out(planner, planner.plan(now), now)
        took.append(clock() - begun)
        running += started
        churned += len(started)
    took.sort()
    p50, p99 = (1000 * took[int(len(took) * share)] for share in (0.5, 0.99))
    print(
        f"{name:<13} shapes {distinct:>5}  placed {placed:>6} of {tasks}: {placed / spent:6,.0f} placements/s"
        f"  | {len(took)} leases end, {churned} start instead: p50 {p50:.2f} ms, p99 {p99:.2f} ms a decision",
        flush=True,
    )
    return placed / spent >= bar and p99 <= most_ms


def main() -> int:
    nodes, tasks = (int(text) for text in (sys.argv[1:] + ["10000", "100000"][len(sys.argv) - 1 :]))
    few = run("few shapes", nodes, tasks, 150, 5_000, 5)
    many = run("mixed shapes", nodes, tasks, 2_500, 1_500, 25)
    return int(not (few and many))


if __name__ == "__main__":
    sys.exit(main())
