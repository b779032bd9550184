"""Joining an edge to its hub: assignments are mirrored down, events and heartbeats are sourced up, stream by stream.

Each side's JetStream has a domain: the hub's is `hub`, an edge's its node name (see `deploy/edge`).
"""

import asyncio
from typing import Any

from llmos.bus import api
from llmos.bus.client import Client, reaching
from llmos.contracts.subjects import STREAMS, deploy
from llmos.errors import Busy

HUB = "hub"
UPWARD = ("EVENTS", "KV_nodes")
CONNECT_WITHIN_S = 5


async def join(hub: str, leaf: str, node: str, credentials: str = "") -> None:
    """Connect the streams of a hub and of an edge's server, both given by URL; persisted when it returns, and repeating
    it changes nothing.

    To be called before anything else of llmos connects to the edge's server. Raises `Busy` when one of them does not
    answer, `LlmosError` when the edge has a DEPLOY stream that is no mirror.
    """
    below = await _connect(leaf, "")
    try:
        await _mirror(below, node)
        await api.ensure(below)
    finally:
        await below.close()
    await _source(hub, node, credentials, present=True)


async def leave(hub: str, node: str, credentials: str = "") -> None:
    """Let the hub take nothing more from an edge; what it took stays."""
    await _source(hub, node, credentials, present=False)


async def _connect(url: str, credentials: str) -> Client:
    nc = Client()
    options: dict[str, Any] = {"user_credentials": credentials} if credentials else {}

    async def quiet(_: Exception) -> None:
        pass  # what keeps us from connecting is raised below

    connecting = asyncio.ensure_future(nc.connect(url, allow_reconnect=False, error_cb=quiet, **options))
    try:
        with reaching(f"the server at {url}"):
            async with asyncio.timeout(CONNECT_WITHIN_S):
                await connecting
    except (OSError, TimeoutError) as error:
        raise Busy(f"can't reach the server at {url}: {error}", remedy="Start it, or correct the address.") from error
    return nc


async def _mirror(below: Client, node: str) -> None:
    spec = STREAMS["DEPLOY"]
    mirror = {
        "name": spec.name,
        "filter_subject": deploy(node, "x").removesuffix("x") + "*",
        "external": {"api": f"$JS.{HUB}.API"},
    }
    config = {
        "name": spec.name,
        "storage": spec.storage,
        "max_msgs_per_subject": spec.max_msgs_per_subject,
        "allow_direct": True,
        "mirror": mirror,
    }
    await api.request(below, f"STREAM.CREATE.{spec.name}", config)


async def _source(hub: str, node: str, credentials: str, *, present: bool) -> None:
    above = await _connect(hub, credentials)
    try:
        await api.ensure(above)
        for stream in UPWARD:
            config = (await api.request(above, f"STREAM.INFO.{stream}"))["config"]
            external = {"api": f"$JS.{node}.API"}
            known = config.get("sources") or []
            others = [each for each in known if each.get("external", {}).get("api") != external["api"]]
            sources = [*others, {"name": stream, "external": external}] if present else others
            if len(sources) != len(known):
                await api.request(above, f"STREAM.UPDATE.{stream}", config | {"sources": sources})
    finally:
        await above.close()
