"""What the history says about who works for which tenant where: the facts that key release is decided on."""

from msgspec import Struct
from msgspec.structs import replace

from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.tasks import (
    TaskCancelled,
    TaskFailed,
    TaskLost,
    TaskPlaced,
    TaskRefused,
    TaskRejected,
    TaskSucceeded,
)

ENDS = (TaskSucceeded, TaskFailed, TaskRejected, TaskRefused, TaskCancelled, TaskLost)
FACTS: tuple[type[Struct], ...] = (TaskPlaced, *ENDS)


class Placement(Struct, frozen=True):
    """A task that holds a lease on a node."""

    tenant: str
    kind: str
    node: str
    lease: int


class State(Struct, frozen=True):
    """`placed`: task → its placement, until it ends. `replicas`: (node, deployment) → what should serve there."""

    placed: dict[str, Placement] = {}
    replicas: dict[tuple[str, str], ReplicaAssigned] = {}


def apply(state: State, fact: Struct) -> State:
    """The state after a fact; facts that say nothing about placement leave it as it is.

    A task's end counts only under its present lease: what an ended lease still says changes nothing.
    """
    if isinstance(fact, TaskPlaced):
        held = state.placed.get(fact.task)
        if held is None or held.lease < fact.lease:
            placement = Placement(fact.tenant, fact.kind, fact.node, fact.lease)
            return replace(state, placed={**state.placed, fact.task: placement})
    elif isinstance(fact, ENDS):
        held = state.placed.get(fact.task)
        if held is not None and held.lease == fact.lease:
            return replace(state, placed={task: p for task, p in state.placed.items() if task != fact.task})
    elif isinstance(fact, ReplicaAssigned):
        key = (fact.node, fact.deployment)
        others = {name: replica for name, replica in state.replicas.items() if name != key}
        present = fact.desired == "present" and fact.version is not None
        return replace(state, replicas={**others, key: fact} if present else others)
    return state
