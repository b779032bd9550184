"""`llmos get`: jobs, models, nodes and deployments as a table, JSON or YAML."""

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from llmos.errors import NotFound
from llmos_cli.exits import Exit, say
from llmos_cli.options import Target
from llmos_cli.printing import age, moment, number, print_table, print_value, size

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.contracts.jobs import JobView
    from llmos.contracts.models import ModelRecord
    from llmos.contracts.nodes import NodeView
    from llmos.contracts.queues import QueueView, ReservationView
    from llmos.history import DeploymentView

Kind = Literal[
    "jobs", "job", "models", "model", "nodes", "node", "deployments", "deployment",
    "queues", "queue", "reservations", "reservation", "events",
]  # fmt: skip
Wide = Annotated[
    Literal["table", "wide", "json", "yaml"],
    Parameter(name=["--output", "-o"], help="How to print: table, wide, json or yaml."),
]


def get(
    kind: Kind,
    name: str | None = None,
    /,
    *,
    state: str | None = None,
    all_tenants: bool = False,
    limit: int = 100,
    output: Wide = "table",
    target: Target = Target(),
) -> int:
    """List what there is, or show one thing.

    Parameters
    ----------
    kind
        jobs, models, nodes, deployments, queues, reservations or events.
    name
        Show only this one.
    state
        Only jobs in this state, such as queued or deployed.
    all_tenants
        Jobs of every tenant.
    limit
        At most so many jobs, the newest first.
    """
    if kind == "events":
        from llmos_cli.events import events

        return asyncio.run(events(target, output))
    tenant = None if all_tenants else target.tenant
    one = kind.rstrip("s")

    async def ask() -> Any:
        async with await target.connect() as client:
            return await _ask(client, one, name, tenant, state, limit)

    found = asyncio.run(ask())
    if output in ("table", "wide"):
        tables = _WIDE if output == "wide" and one in _WIDE else _TABLES
        print_table(*tables[one](found if isinstance(found, list) else [found]))
        if not found:
            say(f"no {one}s")
    else:
        print_value(found, output)
    return Exit.OK


async def _ask(client: "Client", kind: str, name: str | None, tenant: str | None, state: str | None, limit: int) -> Any:
    match kind:
        case "job":
            return await (client.job(name) if name else client.jobs(tenant=tenant, state=state, limit=limit))
        case "model":
            return await (client.model(name) if name else client.models())
        case "node":
            return await find_node(client, name) if name else await client.nodes()
    found: Any
    match kind:
        case "queue":
            found = [view for view in await client.queues() if name in (None, view.name)]
        case "reservation":
            found = [view for view in await client.reservations() if name in (None, view.reservation)]
        case _:
            found = await client.deployments(name)
    if name and not found:
        raise NotFound(f"there is no {kind} {name!r}", remedy=f"See `llmos get {kind}s`.")
    return found[0] if name else found


async def find_node(client: "Client", name: str) -> "NodeView":
    """One node. Raises `NotFound`."""
    for node in await client.nodes():
        if node.node == name:
            return node
    raise NotFound(f"there is no node {name!r}", remedy="See `llmos get nodes`.")


def _jobs(views: "list[JobView]") -> Any:
    rows = [
        (
            view.job,
            view.name,
            view.state,
            view.priority,
            age(view.submitted_at),
            f"{view.model}@{view.version}" if view.version else "",
            view.metrics.get("accuracy"),
        )
        for view in views
    ]
    return ["JOB", "NAME", "STATE", "PRIORITY", "AGE", "MODEL", "ACCURACY"], rows


def _jobs_wide(views: "list[JobView]") -> Any:
    header, rows = _jobs(views)
    more = [(view.tenant, view.queue, moment(view.submitted_at), moment(view.ended_at)) for view in views]
    return [*header, "TENANT", "QUEUE", "SUBMITTED", "ENDED"], [
        (*row, *rest) for row, rest in zip(rows, more, strict=True)
    ]


def _models(records: "list[ModelRecord]") -> Any:
    rows = [
        (
            record.name,
            version.version,
            version.precision,
            version.metrics.get("accuracy"),
            size(version.size),
            age(version.created_at),
            version.job,
        )
        for record in records
        for version in reversed(record.versions)
    ]
    return ["MODEL", "VERSION", "PRECISION", "ACCURACY", "SIZE", "AGE", "JOB"], rows


def _nodes(views: "list[NodeView]") -> Any:
    rows = []
    for view in views:
        has = view.inventory
        cpus = f"{view.cpus_leased:g}/{has.cpus:g}" if has else ""
        memory = f"{size(view.memory_leased)}/{size(has.memory)}" if has else ""
        gpus = f"{_held(view)}/{len(has.gpus)}" if has else ""
        services = [f"{name} (leads)" if name in view.leads else name for name in view.services]
        rows.append((view.node, node_state(view), cpus, memory, gpus, len(view.tasks), services))
    return ["NODE", "STATE", "CPUS", "MEMORY", "GPUS", "TASKS", "SERVICES"], rows


def node_state(view: "NodeView") -> str:
    """One word: ready, cordoned, draining, drained or away."""
    if not view.alive:
        return "away"
    if view.draining:
        return "draining" if view.tasks or view.replicas else "drained"
    return "cordoned" if view.cordoned else "ready"


def _held(view: "NodeView") -> str:
    """GPUs that are leased, shares in parts: `1.5`."""
    shares = view.gpu_milli_leased or dict.fromkeys(view.gpus_leased, 1000)
    return number(sum(shares.values()) / 1000)


def gpus_of(view: "NodeView") -> list[str]:
    """Its GPUs in words, alike ones together: `2 x H100 (1.5 leased)`, `3 x H100 1g.10gb (1 leased)`."""
    kinds: dict[str, list[int]] = {}
    shares = view.gpu_milli_leased or dict.fromkeys(view.gpus_leased, 1000)
    for gpu in view.inventory.gpus if view.inventory else ():
        kinds.setdefault(f"{gpu.model} {gpu.profile}".strip(), []).append(shares.get(gpu.id, 0))
    return [
        f"{len(held)} x {kind}" + (f" ({number(sum(held) / 1000)} leased)" if any(held) else "")
        for kind, held in kinds.items()
    ]


def _nodes_wide(views: "list[NodeView]") -> Any:
    header, rows = _nodes(views)
    more = [
        (
            gpus_of(view),
            view.reservations,
            [f"{key}={value}" for key, value in view.inventory.labels.items()] if view.inventory else "",
            [*view.tasks, *view.replicas],
            view.reason,
        )
        for view in views
    ]
    return [*header, "HARDWARE", "RESERVED", "LABELS", "HOLDS", "REASON"], [
        (*row, *rest) for row, rest in zip(rows, more, strict=True)
    ]


def _deployments(views: "list[DeploymentView]") -> Any:
    rows = [
        (
            view.deployment,
            f"{view.model}@{view.version}" + (f", {view.weight} % @{view.canary}" if view.canary else ""),
            f"{list(view.replicas.values()).count('ready')}/{len(view.replicas)}",
            [f"{node}={state}" for node, state in view.replicas.items()],
            view.job,
        )
        for view in views
    ]
    return ["DEPLOYMENT", "MODEL", "READY", "REPLICAS", "JOB"], rows


def _queues(views: "list[QueueView]") -> Any:
    from llmos_cli.queues import table

    return table(views, 0)


def _reservations(views: "list[ReservationView]") -> Any:
    from llmos_cli.reservations import table

    return table(views)


_TABLES: dict[str, Any] = {
    "job": _jobs, "model": _models, "node": _nodes, "deployment": _deployments, "queue": _queues,
    "reservation": _reservations,
}  # fmt: skip
_WIDE: dict[str, Any] = {"job": _jobs_wide, "node": _nodes_wide}
