"""Fills a cluster until more was asked for than it has: tasks arrive in random order and never leave. Pure.

The experiment of Weng et al. (USENIX ATC 2023): what fits nowhere is lost, and the score is the share of the cluster's
GPUs that is leased when the arrived demand is 100 % of them, and at the end.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from llmos.errors import Rejected
from llmos_scheduler.cluster import Cluster, Machine, Shape
from llmos_scheduler.placer import Placement, Placer


@dataclass(frozen=True, slots=True)
class Arrival:
    """One line of the result: the task, and where it went."""

    task: str
    shape: Shape
    placement: Placement | None


@dataclass(slots=True)
class Saturation:
    """A run: nodes in the order that broke ties, their names, and the score (shares of the cluster's milli-GPU)."""

    nodes: list[str]
    cluster: Cluster
    arrived: int = 0
    placed: int = 0
    allocation: dict[int, float] = field(default_factory=dict)  # by arrived demand in %


def arrivals(
    tasks: Sequence[tuple[str, Shape]], capacity: int, demand: float, seed: int
) -> Iterator[tuple[str, Shape]]:
    """The tasks once, shuffled, then sampled with replacement, until `demand` x `capacity` (milli-GPU) was asked for.

    Raises `Rejected` if that would never be.
    """
    if not any(shape.demand for _, shape in tasks) or not capacity:
        raise Rejected("no task asks for a GPU, or no node has one: demand would never reach the capacity")
    random = Random(f"arrivals {seed}")
    order = list(tasks)
    random.shuffle(order)
    asked = 0
    index = 0
    while asked < demand * capacity:
        name, shape = order[index] if index < len(order) else tasks[random.randrange(len(tasks))]
        index += 1
        asked += shape.demand
        yield name, shape


def saturate(
    nodes: Sequence[tuple[str, Machine]],
    tasks: Sequence[tuple[str, Shape]],
    *,
    demand: float,
    seed: int,
    policy: str,
    tell: Callable[[Saturation, Arrival], None] | None = None,
) -> Saturation:
    """Run the experiment; `tell` hears every arrival. The same arguments give the same run."""
    order = list(nodes)
    Random(f"nodes {seed}").shuffle(order)
    cluster = Cluster(machine for _, machine in order)
    run = Saturation([name for name, _ in order], cluster)
    placer = Placer(cluster, policy)
    asked = leased = 0
    for task, shape in arrivals(tasks, cluster.capacity, demand, seed):
        placer.expect({shape: 1})
        placement = placer.place(shape)
        run.arrived += 1
        asked += shape.demand
        if placement is not None:
            run.placed += 1
            leased += shape.demand
        if 100 not in run.allocation and asked >= cluster.capacity:
            run.allocation[100] = leased / cluster.capacity
        if tell is not None:
            tell(run, Arrival(task, shape, placement))
    run.allocation[round(100 * demand)] = leased / cluster.capacity
    return run
