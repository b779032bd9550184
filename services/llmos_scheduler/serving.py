"""Which nodes can serve a version: those that a deployment has already, then those with the fewest replicas. Pure."""

from collections import Counter
from collections.abc import Callable

from llmos.contracts.models import ModelVersion
from llmos_scheduler.records import Deployment, State


def choose(
    state: State, deployment: Deployment | None, version: ModelVersion, wanted: int, spread: str = ""
) -> list[str]:
    """Nodes for a version: where the deployment is already, then others: of the value of the label `spread` that has
    the fewest of its replicas, then with the fewest replicas of all.

    When there are too few, the nodes that are away keep their place: they serve again when they come back.
    """
    present = deployment.change.nodes if deployment is not None else []
    able = [
        name
        for name, node in state.nodes.items()
        if _able(state, name, version) and (name in present or not node.cordoned)
    ]
    load = dict.fromkeys(able, 0)
    for other in state.deployments.values():
        for name in other.change.nodes:
            if name in load:
                load[name] += 1
    kept = [name for name in present if name in load]
    fresh = sorted((name for name in able if name not in present), key=lambda name: (load[name], name))
    away = [name for name in present if name not in load]
    if spread:
        fresh = _spread([_label(state, name, spread) for name in kept], fresh, lambda name: _label(state, name, spread))
    return (kept + fresh + away)[:wanted]


def _spread(taken: list[str], names: list[str], label: Callable[[str], str]) -> list[str]:
    """The names, each time one of the label's value that was taken the least so far."""
    counts = Counter(taken)
    ordered = []
    left = list(names)
    while left:
        first = min(left, key=lambda name: counts[label(name)])
        left.remove(first)
        ordered.append(first)
        counts[label(first)] += 1
    return ordered


def _label(state: State, name: str, label: str) -> str:
    inventory = state.nodes[name].inventory
    return inventory.labels.get(label, "") if inventory is not None else ""


def _able(state: State, name: str, version: ModelVersion) -> bool:
    node = state.nodes.get(name)
    return (
        node is not None
        and not node.draining
        and any(
            worker.alive and "serve" in worker.kinds and (not worker.memory or version.size <= worker.memory)
            for worker in node.workers.values()
        )
    )


def short(state: State, deployment: Deployment) -> bool:
    """Whether a replica is missing, or on a node that can't serve it."""
    nodes, version = deployment.change.nodes, deployment.change.version
    return len(nodes) < deployment.wanted or not all(_able(state, name, version) for name in nodes)


def staying(state: State, deployment: Deployment) -> dict[str, list[str]]:
    """The leases on nodes that serve and are not to be cleared."""
    return {node: gpus for node, gpus in deployment.change.leases.items() if serves(state, node)}


def serves(state: State, name: str) -> bool:
    node = state.nodes.get(name)
    return node is not None and node.runs("serve") and not node.draining
