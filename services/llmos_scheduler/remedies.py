"""What a person can do about what a job waits for. Pure."""

from collections.abc import Iterator, Sequence

from llmos.contracts.jobs import Obstacle
from llmos.sizes import format_bytes
from llmos_scheduler.placement import Room, capacity, suits
from llmos_scheduler.records import State, Task
from llmos_scheduler.resources import Request

SHOWN = 3  # names in a sentence


def too_large(state: State, task: Task) -> bool:
    """Whether fewer nodes could ever hold it than it asks for, even with nothing leased."""
    wants = task.request
    return sum(suits(node, wants) for node in state.nodes.values() if node.runs(task.kind)) < wants.nodes


def remedies(state: State, task: Task, obstacles: Sequence[Obstacle]) -> list[str]:
    """What helps, one thing a line."""
    kinds = {obstacle.kind for obstacle in obstacles}
    if "worker" in kinds:
        return [f"Start {'an exporter' if task.kind == 'export' else 'a trainer'} on a node."]
    if too_large(state, task):
        return list(_larger(state, task))
    found = []
    if "limit" in kinds:
        found.append("Raise the queue's limit: llmos queues apply.")
    if "quota" in kinds:
        found.append("Raise the queue's quota: llmos queues apply.")
    if "reservation" in kinds:
        names = ", ".join(sorted(state.reservations)[:SHOWN])
        found.append(f"Wait for the reservation's end, or end it ({names}): llmos unreserve.")
    if "cordon" in kinds:
        closed = sorted(node.name for node in state.nodes.values() if node.cordoned and suits(node, task.request))
        found.append(f"Let a node take work again: llmos uncordon {' | '.join(closed[:SHOWN]) or 'NODE'}.")
    if kinds & {"priority", "resources", "gang"}:
        found.append("It starts when enough of that is free again; a higher priority lets it go first.")
    return found


def _larger(state: State, task: Task) -> Iterator[str]:
    """Larger nodes, or a smaller request."""
    wants = task.request
    yield f"Add {'a node' if wants.nodes == 1 else f'nodes, until {wants.nodes} can hold it,'} with {_each(wants)}."
    nodes = [node for node in state.nodes.values() if node.runs(task.kind) and node.inventory]
    rooms = [capacity(node) for node in nodes]
    for key, value in wants.labels:
        known = {node.inventory.labels.get(key, "") for node in nodes if node.inventory} - {""}
        if value not in known:
            there = f", there is {', '.join(sorted(known))}" if known else ""
            yield f"Ask for another label: no node has {key}={value}{there}."
    if wants.gpus and wants.gpu_models and not any(room.suitable(wants) for room in rooms):
        models = sorted({gpu.profile or gpu.model for room in rooms for gpu in room.gpus})
        yield f"Allow another GPU model: there {'is' if models else 'are none'} {', '.join(models)}".strip() + "."
        return
    yield from _less(wants, rooms)


def _less(wants: Request, rooms: Sequence[Room]) -> Iterator[str]:
    for field, want, most in (
        ("cpus", wants.cpus, max((room.cpus for room in rooms), default=0)),
        ("memory", wants.memory, max((room.memory for room in rooms), default=0)),
        ("gpus", wants.gpus, max((room.free(wants) for room in rooms), default=0)),
    ):
        if want > most:
            text = format_bytes(int(most)) if field == "memory" else f"{most:g}"
            yield f"Ask for less: resources.{field} of at most {text}."


def _each(wants: Request) -> str:
    """What each node needs."""
    return str(wants).partition(" nodes with ")[2].removesuffix(" each") if wants.nodes > 1 else str(wants)
