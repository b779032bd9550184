"""Who is there: heartbeats become the facts that a worker joined, that it was lost, that a node was lost. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llmos.contracts.nodes import LOST_AFTER_S, Heartbeat, NodeLost, WorkerJoined, WorkerLost
from llmos_scheduler.effects import Emit
from llmos_scheduler.records import State


@dataclass(frozen=True, slots=True)
class Beat:
    """The newest heartbeat of a service of a node, and when it was heard here (not when its sender's clock said so)."""

    heartbeat: Heartbeat
    heard_at: float
    retired: bool = False  # the service took its heartbeat back: it ended


def hear(known: Beat | None, heartbeat: Heartbeat, now: float) -> Beat:
    """The heartbeat as it counts.

    The first of a service may be what a dead one left in the bucket: it counts for what is left of its time by its
    sender's clock. Every further one was sent since, whatever that clock says.
    """
    if known is None:
        return Beat(heartbeat, min(now, max(heartbeat.at, now - LOST_AFTER_S)))
    return Beat(heartbeat, now)


def notice(state: State, beats: Mapping[str, Beat], now: float, *, since: float) -> Iterator[Emit]:
    """The facts that the heartbeats (by key `<node>.<service>`) add to the state.

    `since` is the time from which the bus has been heard without a gap: nobody is lost before 20 s of hearing.
    """
    for beat in beats.values():
        heartbeat = beat.heartbeat
        if beat.retired or now - beat.heard_at >= LOST_AFTER_S:
            continue
        node = state.nodes.get(heartbeat.node)
        known = node.workers.get(heartbeat.service) if node else None
        if known is None or not known.alive or (known.kinds, known.memory) != (heartbeat.kinds, heartbeat.memory):
            joined = WorkerJoined(heartbeat.node, heartbeat.service, heartbeat.kinds, heartbeat.memory)
            yield Emit(joined, f"{heartbeat.node}.{heartbeat.service}.{known.epoch + 1 if known else 1}.joined")
    for node in state.nodes.values():
        alive = [worker for worker in node.workers.values() if worker.alive]
        gone = [worker for worker in alive if _is_gone(beats.get(f"{node.name}.{worker.service}"), now, since)]
        for worker in gone:
            yield Emit(WorkerLost(node.name, worker.service), f"{node.name}.{worker.service}.{worker.epoch}.lost")
        if node.workers and len(gone) == len(alive) and not node.lost:
            yield Emit(NodeLost(node.name), f"{node.name}.{node.losses + 1}.lost")


def _is_gone(beat: Beat | None, now: float, since: float) -> bool:
    if beat is not None and beat.retired:
        return True
    return now - max(beat.heard_at if beat else 0.0, since) >= LOST_AFTER_S
