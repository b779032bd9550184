"""`llmos get`: jobs, models, nodes and deployments as a table, JSON or YAML."""

import asyncio
from typing import TYPE_CHECKING, Any, Literal

from llmos.errors import NotFound
from llmos_cli.exits import Exit, say
from llmos_cli.options import Output, Target
from llmos_cli.printing import age, print_table, print_value, size

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.contracts.jobs import JobView
    from llmos.contracts.models import ModelRecord
    from llmos.contracts.nodes import NodeView
    from llmos.history import DeploymentView

Kind = Literal["jobs", "job", "models", "model", "nodes", "node", "deployments", "deployment"]


def get(
    kind: Kind,
    name: str | None = None,
    /,
    *,
    state: str | None = None,
    all_tenants: bool = False,
    limit: int = 100,
    output: Output = "table",
    target: Target = Target(),
) -> int:
    """List what there is, or show one thing.

    Parameters
    ----------
    kind
        jobs, models, nodes or deployments.
    name
        Show only this one.
    state
        Only jobs in this state, such as queued or deployed.
    all_tenants
        Jobs of every tenant.
    limit
        At most so many jobs, the newest first.
    """
    tenant = None if all_tenants else target.tenant

    async def ask() -> Any:
        async with await target.connect() as client:
            return await _ask(client, kind.rstrip("s"), name, tenant, state, limit)

    found = asyncio.run(ask())
    if output == "table":
        print_table(*_TABLES[kind.rstrip("s")](found if isinstance(found, list) else [found]))
        if not found:
            say(f"no {kind.rstrip('s')}s")
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
    found = await client.deployments(name)
    if name and not found:
        raise NotFound(f"there is no deployment {name!r}", remedy="See `llmos get deployments`.")
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
        gpus = f"{len(view.gpus_leased)}/{len(has.gpus)}" if has else ""
        rows.append((view.node, view.alive, cpus, memory, gpus, len(view.tasks), view.services))
    return ["NODE", "ALIVE", "CPUS", "MEMORY", "GPUS", "TASKS", "SERVICES"], rows


def _deployments(views: "list[DeploymentView]") -> Any:
    rows = [
        (
            view.deployment,
            f"{view.model}@{view.version}",
            f"{list(view.replicas.values()).count('ready')}/{len(view.replicas)}",
            [f"{node}={state}" for node, state in view.replicas.items()],
            view.job,
        )
        for view in views
    ]
    return ["DEPLOYMENT", "MODEL", "READY", "REPLICAS", "JOB"], rows


_TABLES: dict[str, Any] = {"job": _jobs, "model": _models, "node": _nodes, "deployment": _deployments}
