"""What is free on each node, for `explain`: the planner decides, this says what a node lacks. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from llmos.contracts.nodes import Gpu
from llmos.contracts.tasks import Kind
from llmos_scheduler.checks import check_places
from llmos_scheduler.lifecycle import stopping
from llmos_scheduler.records import Job, Node, State, Task
from llmos_scheduler.resources import Request
from llmos_scheduler.tenancy import devices_of

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
    return Room(node, has.cpus, has.memory, devices_of(has.gpus), check_places(node))


def rooms(state: State) -> dict[str, Room]:
    """What is free on every living node, by name."""
    free = {name: capacity(node) for name, node in state.nodes.items() if node.alive}
    for task in state.live_tasks():
        for member in task.members:
            if member.node in free:
                free[member.node].take(task.kind, task.request, member.devices)
    return free


def waiting_tasks(state: State, now: float) -> list[tuple[Job, Task]]:
    """Jobs whose next task may start now, with that task: priority, then age."""
    waiting = [
        (job, task)
        for job in state.living_jobs()
        if (task := job.current) is not None
        and task.state == "waiting"
        and task.not_before <= now
        and stopping(job, now) is None
    ]
    return sorted(waiting, key=lambda pair: (-pair[0].spec.priority, pair[0].number))
