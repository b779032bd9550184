"""`llmos deploy`, `llmos canary` and `llmos rollback`: which version of a model answers how many requests."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from llmos_cli.exits import Exit
from llmos_cli.options import Cluster, Output, who
from llmos_cli.printing import print_value

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.contracts.deployments import DeploymentChanged


def deploy(
    deployment: str,
    /,
    *,
    version: int = 0,
    pin: bool | None = None,
    idle: float | None = None,
    output: Output = "table",
    cluster: Cluster = Cluster(),
) -> int:
    """Serve another version of the deployed model, or change how its replicas are kept.

    Parameters
    ----------
    deployment
        The name under which the model is served.
    version
        The version that answers all requests from now on.
    pin
        Never unload it for room.
    idle
        Unload it after so many seconds without a request; 0 never does.
    """
    return _change(
        lambda client: client.shift(deployment, version, pinned=pin, idle=idle, requested_by=who()), output, cluster
    )


def canary(
    deployment: str,
    /,
    *,
    version: int,
    weight: int = 10,
    output: Output = "table",
    cluster: Cluster = Cluster(),
) -> int:
    """Let another version of the deployed model answer some of the requests.

    Parameters
    ----------
    deployment
        The name under which the model is served.
    version
        The version to try.
    weight
        Of how many percent of the requests; 0 takes the canary back, 100 makes it the version that serves.
    """
    return _change(lambda client: client.shift(deployment, version, weight, requested_by=who()), output, cluster)


def rollback(deployment: str, /, *, output: Output = "table", cluster: Cluster = Cluster()) -> int:
    """Take the canary back or, if there is none, go back to the version that served before.

    Parameters
    ----------
    deployment
        The name under which the model is served.
    """
    return _change(lambda client: client.rollback(deployment, requested_by=who()), output, cluster)


def _change(ask: "Callable[[Client], Awaitable[DeploymentChanged]]", output: Output, cluster: Cluster) -> int:
    async def change() -> "DeploymentChanged":
        async with await cluster.connect() as client:
            return await ask(client)

    changed = asyncio.run(change())
    if output != "table":
        print_value(changed, output)
        return Exit.OK
    beside = f", version {changed.canary.version} answers {changed.weight} %" if changed.canary else ""
    kept = ", pinned" if changed.pinned else f", unloaded after {changed.idle:g} s" if changed.idle else ""
    where = ", ".join(changed.nodes)
    print(f"{changed.deployment}: {changed.version.model} version {changed.version.version} on {where}{beside}{kept}")
    return Exit.OK
