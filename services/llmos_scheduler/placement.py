"""Where a task may run: what every node has free, in which order tasks are placed, and on which node.

`Policy` is the part that another brain can replace; `gpu_nodes.LeastLoss` is the default, on top of `ByPriority`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from llmos.contracts.nodes import Gpu
from llmos.contracts.tasks import Kind
from llmos_scheduler.records import Job, Node, State, Task
from llmos_scheduler.resources import Request

CHECKS_A_NODE = 2
_ROUNDING = 1e-9  # cpus are fractions


@dataclass(slots=True)
class Room:
    """What is free on one node. Checks have places of their own, so that a full cluster still reports bad data."""

    node: Node
    cpus: float = 0.0
    memory: int = 0
    gpus: list[Gpu] = field(default_factory=list)
    checks: int = 0

    def fits(self, kind: Kind, request: Request) -> bool:
        """Whether the node takes this kind of work and has this much left."""
        if not self.node.runs(kind) or self.node.inventory is None:
            return False
        if kind == "check":
            return self.checks > 0
        return (
            request.cpus <= self.cpus + _ROUNDING
            and request.memory <= self.memory
            and request.gpus <= len(self.devices(request))
        )

    def devices(self, request: Request) -> list[str]:
        """Ids of the free GPUs that are large enough, the smallest first."""
        enough = [gpu for gpu in self.gpus if gpu.memory >= request.gpu_memory]
        return [gpu.id for gpu in sorted(enough, key=lambda gpu: (gpu.memory, gpu.index, gpu.id))]

    def take(self, kind: Kind, request: Request, devices: Sequence[str]) -> None:
        """Count a lease against the node."""
        if kind == "check":
            self.checks -= 1
            return
        self.cpus -= request.cpus
        self.memory -= request.memory
        self.gpus = [gpu for gpu in self.gpus if gpu.id not in devices]


def capacity(node: Node) -> Room:
    """The node with nothing leased; an unknown inventory has room for nothing."""
    has = node.inventory
    if has is None:
        return Room(node)
    return Room(node, has.cpus, has.memory, list(has.gpus), max(CHECKS_A_NODE, int(has.cpus) // 4))


def rooms(state: State) -> dict[str, Room]:
    """What is free on every living node, by name."""
    free = {name: capacity(node) for name, node in state.nodes.items() if node.alive}
    for task in state.live_tasks():
        if task.node in free:
            free[task.node].take(task.kind, task.request, task.devices)
    return free


class Policy(Protocol):
    """The brain: the order in which waiting tasks get their chance, and the node that one gets."""

    def order(self, state: State, waiting: Sequence[tuple[Job, Task]], now: float) -> Iterable[tuple[Job, Task]]:
        """Every waiting task, the most urgent first."""

    def choose(self, state: State, job: Job, task: Task, free: Iterable[Room]) -> Room | None:
        """One of the rooms into which the task fits, or `None` to let it wait."""


class ByPriority:
    """Priority, then age; a task that fits nowhere lets the next one try.

    Among nodes: not where the last attempt failed; GPU nodes last for work without GPUs; where the job's artifacts
    already are; then where the least is left over.
    """

    def order(self, state: State, waiting: Sequence[tuple[Job, Task]], now: float) -> list[tuple[Job, Task]]:
        return sorted(waiting, key=lambda pair: (-pair[0].spec.priority, pair[0].number))

    def choose(self, state: State, job: Job, task: Task, free: Iterable[Room]) -> Room | None:
        visited = self.visited(job)

        def preference(room: Room) -> tuple[bool, int, bool, float, int, str]:
            idle_gpus = len(room.gpus) - task.request.gpus
            return (
                room.node.name == task.avoid,
                idle_gpus,
                room.node.name not in visited,
                room.cpus - task.request.cpus,
                -room.checks,
                room.node.name,
            )

        return min((room for room in free if room.fits(task.kind, task.request)), key=preference, default=None)

    @staticmethod
    def visited(job: Job) -> set[str]:
        """The nodes that hold artifacts of the job."""
        return {other.node for other in job.tasks.values() if other.state == "succeeded"}
