"""What operators ask for, judged: the fact that follows from a request, or why it is refused. Pure.

`None` is the answer to what is so already: repeating a request says nothing twice.
"""

from llmos.contracts.nodes import CordonRequested, NodeCordoned, NodeUncordoned, UncordonRequested
from llmos.contracts.queues import (
    QueuesChanged,
    ReservationEnded,
    ReservationMade,
    ReserveRequested,
    SetQueuesRequested,
    UnreserveRequested,
)
from llmos.errors import NotFound, Rejected
from llmos.ids import is_token
from llmos.queuespecs import check_queues
from llmos.specs import check_queue_path
from llmos_scheduler.records import Node, State

MOST_TOLD = 10  # faults in one message
MOST_NODES = 10_000  # of one reservation


def cordon(state: State, request: CordonRequested) -> NodeCordoned | None:
    """Raises `NotFound` for a node that nobody ever heard of."""
    node = _node(state, request.node)
    if node.cordoned and (node.draining, node.reason) == (request.drain, request.reason):
        return None
    return NodeCordoned(node.name, request.drain, request.requested_by, request.reason)


def uncordon(state: State, request: UncordonRequested) -> NodeUncordoned | None:
    """Raises `NotFound` for a node that nobody ever heard of."""
    node = _node(state, request.node)
    return NodeUncordoned(node.name, request.requested_by) if node.cordoned else None


def set_queues(state: State, request: SetQueuesRequested) -> QueuesChanged | None:
    """Raises `Rejected` that names the faults."""
    raw = [{name: getattr(queue, name) for name in queue.__struct_fields__} for queue in request.queues]
    queues, faults = check_queues(raw)
    if faults:
        more = f" (and {len(faults) - MOST_TOLD} more)" if len(faults) > MOST_TOLD else ""
        raise Rejected(
            "; ".join(map(str, faults[:MOST_TOLD])) + more, remedy="Correct all of it.", param=faults[0].path
        )
    return QueuesChanged(queues, request.requested_by) if queues != state.queues else None


def reserve(state: State, request: ReserveRequested, now: float) -> ReservationMade | None:
    """Raises `Rejected` for what makes no sense, `NotFound` for nodes that nobody ever heard of."""
    name = request.reservation
    if not is_token(name):
        raise Rejected(f"{name[:64]!r} names no reservation", remedy="Use letters, digits, '_' and '-'.")
    if not request.queue and not request.tenant:
        raise Rejected("nobody is named for whom the nodes are kept", remedy="Give a queue or a tenant.", param="queue")
    if request.queue and (wrong := check_queue_path(request.queue)):
        raise Rejected(f"queue: {wrong}", param="queue")
    if request.tenant and not is_token(request.tenant):
        raise Rejected(f"{request.tenant[:64]!r} can't be a tenant", param="tenant")
    if not 1 <= len(set(request.nodes)) <= MOST_NODES:
        raise Rejected(f"{len(set(request.nodes))} nodes are named, not 1 to {MOST_NODES}", param="nodes")
    if request.end is not None and request.end <= max(request.start, now):
        raise Rejected("the reservation would end before it begins", remedy="Give a later end.", param="end")
    nodes = [_node(state, node).name for node in dict.fromkeys(request.nodes)]
    made = ReservationMade(name, nodes, request.queue, request.tenant, request.start, request.end, request.requested_by)
    return made if state.reservations.get(name) != made else None


def unreserve(state: State, request: UnreserveRequested) -> ReservationEnded:
    """Raises `NotFound`."""
    if request.reservation not in state.reservations:
        raise NotFound(
            f"there is no reservation {request.reservation!r}",
            remedy="`llmos get reservations` lists them.",
            param="reservation",
        )
    return ReservationEnded(request.reservation, request.requested_by)


def _node(state: State, name: str) -> Node:
    node = state.nodes.get(name)
    if node is None:
        raise NotFound(f"there is no node {name!r}", remedy="`llmos get nodes` lists the nodes.", param="node")
    return node
