"""What each node has free and lacks for a request, in words, for `explain`: the planner decides. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType

from llmos.contracts.nodes import Gpu
from llmos.contracts.tasks import Kind
from llmos.sizes import format_bytes
from llmos_scheduler.checks import check_places
from llmos_scheduler.cluster import WHOLE
from llmos_scheduler.lifecycle import stopping
from llmos_scheduler.records import Job, Node, State, Task
from llmos_scheduler.resources import GANG, Request
from llmos_scheduler.tenancy import devices_of

MOST_NODES = 12  # that are told one by one; more are told by class
_ROUNDING = 1e-9  # cpus are fractions


@dataclass(slots=True)
class Room:
    """What is free on one node. `milli` is what is left of each GPU, `checks` the places for checks that are left;
    `holders` are who holds the rest."""

    node: Node
    cpus: float = 0.0
    memory: int = 0
    gpus: list[Gpu] = field(default_factory=list)
    milli: dict[str, int] = field(default_factory=dict)
    holders: list[str] = field(default_factory=list)
    checks: int = 0

    def take(self, holder: str, request: Request, devices: list[str]) -> None:
        """Count a lease against the node."""
        self.cpus -= request.cpus
        self.memory -= request.memory
        for device in devices:
            if device in self.milli:
                self.milli[device] -= request.gpu_milli
        self.holders.append(holder)

    def give_back(self, request: Request, devices: list[str]) -> None:
        """A lease ends."""
        self.cpus += request.cpus
        self.memory += request.memory
        for device in devices:
            if device in self.milli:
                self.milli[device] += request.gpu_milli

    def fits(self, kind: Kind, request: Request) -> bool:
        """Whether the work could start on the node now."""
        return not obstacle(self.node, self, kind, request)[0]

    def suitable(self, request: Request) -> list[Gpu]:
        """GPUs of the right model and size."""
        models = set(request.gpu_models)
        return [
            gpu
            for gpu in self.gpus
            if gpu.memory >= request.gpu_memory and (not models or (gpu.profile or gpu.model) in models)
        ]

    def free(self, request: Request) -> int:
        """How many suitable GPUs have as much left."""
        return sum(self.milli[gpu.id] >= request.gpu_milli for gpu in self.suitable(request))


def capacity(node: Node) -> Room:
    """The node with nothing leased; an unknown inventory has room for nothing."""
    has = node.inventory
    if has is None:
        return Room(node)
    gpus = devices_of(has.gpus)
    return Room(node, has.cpus, has.memory, gpus, {gpu.id: WHOLE for gpu in gpus}, checks=check_places(node))


def rooms(state: State) -> dict[str, Room]:
    """What is free on every living node, by name. Checks have places of their own, beside the rest."""
    found = {name: capacity(node) for name, node in state.nodes.items() if node.alive}
    for task in state.live_tasks():
        for member in task.members:
            if member.node not in found:
                continue
            if task.kind == "check":
                found[member.node].checks -= 1
            else:
                found[member.node].take(task.job, task.request, list(member.devices))
    for deployment in state.deployments.values():
        if deployment.request is not None:
            for node, devices in deployment.change.leases.items():
                if node in found:
                    found[node].take(f"deployment/{deployment.name}", deployment.request, list(devices))
        for node, leaving in deployment.vacating.items():
            if node in found:
                found[node].take(f"deployment/{deployment.name}", leaving.request, list(leaving.devices))
    return found


def node_class(node: Node) -> str:
    """What kind of node it is, in words: `8 x H100`, `7 x A100 1g.10gb`, `no GPUs`."""
    kinds: dict[str, int] = {}
    for gpu in devices_of(node.inventory.gpus) if node.inventory else ():
        name = f"{gpu.model} {gpu.profile}".strip()
        kinds[name] = kinds.get(name, 0) + 1
    return " + ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items())) or "no GPUs"


def obstacle(node: Node, room: Room | None, kind: str, request: Request) -> tuple[str, str]:
    """(kind of obstacle, why the work can't start on the node now); ("", "") if it could."""
    if not node.alive or room is None:
        return "worker", "is away"
    if not node.runs(kind):
        return "worker", f"no worker takes {kind}"
    if request.nodes > 1 and not node.runs(GANG):
        return "worker", "its worker takes no part in work over several nodes"
    if node.inventory is None:
        return "worker", "its hardware is not known; is a hw-agent running there?"
    missing = [f"{key}={value}" for key, value in request.labels if node.inventory.labels.get(key) != value]
    if missing:
        return "labels", f"has no label {', '.join(missing)}"
    if node.cordoned:
        why = f": {node.reason}" if node.reason else ""
        return "cordon", f"is {'drained' if node.draining else 'cordoned'}{why}"
    if kind == "check":
        return ("", "") if room.checks > 0 else ("resources", "its places for checks are taken")
    lacks = list(_lacks(room, request, capacity(node)))
    if not lacks:
        return "", ""
    held = f"; held by {', '.join(dict.fromkeys(room.holders))}" if room.holders else ""
    return "resources", f"needs {'; '.join(lacks)}{held}"


def suits(node: Node, request: Request) -> bool:
    """Whether the node could hold it with nothing leased: its size, its GPUs, its labels."""
    has = node.inventory
    if has is None or any(has.labels.get(key) != value for key, value in request.labels):
        return False
    return not list(_lacks(capacity(node), request, capacity(node)))


def _lacks(room: Room, wants: Request, whole: Room) -> Iterator[str]:
    if wants.cpus > room.cpus + _ROUNDING:
        yield f"{wants.cpus:g} cpus, {max(0.0, round(room.cpus, 2)):g} of {whole.cpus:g} are free"
    if wants.memory > room.memory:
        free = f"{format_bytes(max(0, room.memory))} of {format_bytes(whole.memory)}"
        yield f"{format_bytes(wants.memory)} of memory, {free} are free"
    if wants.gpus > room.free(wants):
        size = f" of {format_bytes(wants.gpu_memory)}" if wants.gpu_memory else ""
        name = "/".join(wants.gpu_models) or "GPU"
        several = f"{wants.gpus} {name}{'s' * (wants.gpus > 1 and name == 'GPU')}"
        what = f"{wants.gpu_milli / 10:g} % of a {name}" if wants.gpu_milli < WHOLE else several
        yield f"{what}{size}, {room.free(wants)} of {len(room.suitable(wants))} are free"


def soonest(state: State, task: Task, now: float) -> float | None:
    """When a node has room for it, by what running work says of its own end; `None` if that is not known of enough.

    It is for a task that is next, on one node: whoever comes before it would take that room.
    """
    leases: dict[str, list[tuple[float, Task, list[str]]]] = {}
    for other in state.live_tasks():
        for member in other.members if other.kind != "check" else ():
            leases.setdefault(member.node, []).append((expected_end(other, now), other, list(member.devices)))
    best = inf
    for name, room in rooms(state).items():
        if not suits(room.node, task.request) or obstacle(room.node, room, task.kind, task.request)[0] != "resources":
            continue
        for end, other, devices in sorted(leases.get(name, []), key=lambda lease: lease[0]):
            room.give_back(other.request, devices)
            if room.fits(task.kind, task.request):
                best = min(best, end)
                break
    return best if best < inf else None


def first_end(state: State, jobs: Sequence[str], milli: int, now: float) -> float | None:
    """When the running tasks of these jobs will have given up so much of GPUs; `None` if that is not known."""
    tasks = [
        task for job in jobs if (known := state.jobs.get(job)) and (task := known.current) is not None and task.live
    ]
    for end, freed in sorted((expected_end(task, now), task.request.amounts[0]) for task in tasks):
        milli -= freed
        if milli <= 0:
            return end if end < inf else None
    return None


def expected_end(task: Task, now: float) -> float:
    """When a task that holds a lease ends: by its worker's word, else as earlier runs of its like took; else never."""
    end = inf
    if "eta" in task.progress:
        end = task.seen_at + task.progress["eta"]
    elif task.expected is not None and task.placed_at is not None:
        end = task.placed_at + task.expected - task.done
    return end if end > now else inf  # it is late: nobody knows


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


def by_node(
    state: State, kind: str, request: Request, barred: Mapping[str, str] = MappingProxyType({})
) -> tuple[list[str], list[str]]:
    """Why each node can't take the work now (nodes of a class together if there are many), and the nodes that could.

    `barred`: why it may not use a node at all, by the node's name.
    """
    found = rooms(state)
    taken = any(node.runs(kind) for node in state.nodes.values())
    told: list[str] = []
    open_nodes: list[str] = []
    classes: dict[tuple[str, str], list[tuple[int, str, str]]] = {}
    for name, node in sorted(state.nodes.items()):
        if taken and node.alive and not node.runs(kind):
            continue  # it is there for something else
        what, why = obstacle(node, found.get(name), kind, request)
        if name in barred and what in ("", "resources"):
            what, why = "reservation", barred[name]
        if not what:
            open_nodes.append(name)
        elif len(state.nodes) <= MOST_NODES:
            told.append(f"{name}: {why}")
        else:
            room = found.get(name)
            free = room.free(request) if room is not None and request.gpus else 0
            classes.setdefault((node_class(node), what if what == "resources" else why), []).append((free, name, why))
    for (kinds, what), nodes in sorted(classes.items()):
        free, name, why = max(nodes)
        most = f"the best, {name}, {why}" if what == "resources" else what
        told.append(f"{len(nodes)} node{'s' * (len(nodes) > 1)} ({kinds}): {most}")
    return told, open_nodes
