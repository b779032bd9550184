"""`llmos cordon`, `uncordon`, `drain`: which nodes take work."""

import asyncio
import time
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from llmos.errors import Busy
from llmos_cli.exits import Exit, say
from llmos_cli.options import Cluster, Output, who
from llmos_cli.printing import print_value

if TYPE_CHECKING:
    from llmos.client import Client
    from llmos.contracts.nodes import NodeView

LOOK_EVERY_S = 0.5


def cordon(node: str, /, *, reason: str = "", output: Output = "table", cluster: Cluster = Cluster()) -> int:
    """Let nothing new start on a node; what runs there goes on. Repeating it changes the reason.

    Parameters
    ----------
    node
        The node's name.
    reason
        Why, for the history and for whoever asks why a job waits.
    """

    async def ask() -> "NodeView":
        async with await cluster.connect() as client:
            return await client.cordon(node, reason=reason, requested_by=who())

    return _show(asyncio.run(ask()), output)


def uncordon(node: str, /, *, output: Output = "table", cluster: Cluster = Cluster()) -> int:
    """Let a cordoned or drained node take work again.

    Parameters
    ----------
    node
        The node's name.
    """

    async def ask() -> "NodeView":
        async with await cluster.connect() as client:
            return await client.uncordon(node, requested_by=who())

    return _show(asyncio.run(ask()), output)


def drain(
    node: str,
    /,
    *,
    wait: Annotated[bool, Parameter(name=["--wait", "-w"], negative="")] = False,
    timeout: float | None = None,
    reason: str = "",
    output: Output = "table",
    cluster: Cluster = Cluster(),
) -> int:
    """Cordon a node and clear it: preemptible work saves a checkpoint and goes elsewhere, replicas move, the rest ends.

    Parameters
    ----------
    node
        The node's name.
    wait
        Return once nothing is left on the node but replicas that no other node could serve; what still is, is told
        on stderr.
    timeout
        With --wait: give up waiting after so many seconds (exit code 5); the node stays cordoned and goes on draining.
    reason
        Why, for the history and for whoever asks why a job waits.
    """

    async def ask() -> "NodeView":
        async with await cluster.connect() as client:
            view = await client.cordon(node, drain=True, reason=reason, requested_by=who())
            return await _emptied(client, view, timeout) if wait else view

    return _show(asyncio.run(ask()), output)


async def _emptied(client: "Client", view: "NodeView", timeout: float | None) -> "NodeView":
    """Wait until nothing is left on the node but replicas that no other node could serve. Raises `Busy` after
    `timeout` seconds."""
    from llmos_cli.get import find_node

    until = time.monotonic() + (float("inf") if timeout is None else timeout)
    told: list[str] = []
    while left := [*view.tasks, *view.replicas]:
        if not view.tasks and not await _served_elsewhere(client, view.node):
            say(f"{', '.join(left)} stays on {view.node}: no other node serves")
            return view
        if left != told:
            say(f"still on {view.node}: {', '.join(left)}")
            told = left
        if time.monotonic() >= until:
            raise Busy(
                f"{view.node} is not empty after {timeout:g} s: {', '.join(left)}",
                remedy="Wait longer, or cancel those jobs; it goes on draining.",
            )
        await asyncio.sleep(LOOK_EVERY_S)
        view = await find_node(client, view.node)
    return view


async def _served_elsewhere(client: "Client", node: str) -> bool:
    """Whether another node could take a replica."""
    return any(
        other.alive and not other.cordoned and "inferencer" in other.services
        for other in await client.nodes()
        if other.node != node
    )


def _show(view: "NodeView", output: str) -> int:
    if output != "table":
        print_value(view, output)
        return Exit.OK
    left = len(view.tasks) + len(view.replicas)
    on_it = f"{left} {'things' if left > 1 else 'thing'} still on it" if left else "nothing is on it"
    if view.draining:
        print(f"{view.node} drains: {on_it}" if left else f"{view.node} is drained: {on_it}")
    else:
        print(f"{view.node} {f'is cordoned: {on_it}' if view.cordoned else 'takes work'}")
    return Exit.OK
