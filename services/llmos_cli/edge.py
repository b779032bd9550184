"""`llmos edge`: join a box with a nats-server of its own to the hub, so that it goes on when the link is cut."""

import asyncio
import os
from typing import Annotated

from cyclopts import App, Parameter

from llmos.errors import Rejected
from llmos.ids import is_token
from llmos_cli.exits import Exit

app = App(name="edge", help="Join a box with a nats-server of its own to the hub.", help_format="plaintext")

Hub = Annotated[str | None, Parameter(name="--nats-url", help="The bus of the hub (LLMOS_NATS_URL).")]


@app.command
def join(node: str, /, *, nats_url: Hub = None, leaf: str = "nats://127.0.0.1:4222") -> int:
    """Mirror the node's assignments down to it; send its events and heartbeats up. Once, while the link stands.

    Parameters
    ----------
    node
        The node's name: LLMOS_NODE of the inferencer, and the JetStream domain of the box's server.
    leaf
        The box's own nats-server.
    """
    from llmos.bus import edge

    hub, credentials = _hub(node, nats_url)
    asyncio.run(edge.join(hub, leaf, node, credentials))
    print(f"{node} is joined: {leaf} mirrors its assignments, {hub} takes its events")
    return Exit.OK


@app.command
def leave(node: str, /, *, nats_url: Hub = None) -> int:
    """Let the hub take nothing more from a box.

    Parameters
    ----------
    node
        The node's name.
    """
    from llmos.bus import edge

    hub, credentials = _hub(node, nats_url)
    asyncio.run(edge.leave(hub, node, credentials))
    print(f"{hub} takes nothing more from {node}")
    return Exit.OK


def _hub(node: str, nats_url: str | None) -> tuple[str, str]:
    if not is_token(node):
        raise Rejected(f"{node[:64]!r} can't name a node", remedy="Use letters, digits, '_' and '-'.")
    hub = nats_url or os.environ.get("LLMOS_NATS_URL", "")
    if not hub:
        raise Rejected("no hub is named", remedy=f"llmos edge join {node} --nats-url nats://hub.example:4222")
    return hub, os.environ.get("LLMOS_NATS_CREDENTIALS", "")
