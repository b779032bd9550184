"""`llmos reserve` and `llmos unreserve`: nodes that are kept for a queue or a tenant."""

import asyncio
import re
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from llmos.errors import Rejected
from llmos_cli.exits import Exit
from llmos_cli.options import Cluster, Output, who
from llmos_cli.printing import moment, print_value

if TYPE_CHECKING:
    from llmos.contracts.queues import ReservationView

UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


def reserve(
    name: str,
    /,
    *,
    nodes: str,
    queue: str = "",
    tenant: Annotated[str, Parameter(name="--tenant")] = "",
    start: str = "",
    end: str = "",
    output: Output = "table",
    cluster: Cluster = Cluster(),
) -> int:
    """Keep nodes for the work of a queue (and those below it) or of a tenant. What runs there goes on to its end.

    Parameters
    ----------
    name
        The reservation's name; one that is known is changed.
    nodes
        The nodes, with commas between them.
    queue
        Whose work may start there: this queue's, and that of queues below it.
    tenant
        Whose work may start there; with --queue, only this tenant's in that queue.
    start
        When it begins: a time with its zone, or from now on (+30m, +2h, +1d). Default: now.
    end
        When it ends, likewise. Default: when `llmos unreserve` ends it.
    """
    now = time.time()
    wanted = [node for node in (part.strip() for part in nodes.split(",")) if node]
    begins, ends = read_time(start, "--start", now), read_time(end, "--end", now)
    if not wanted:
        raise Rejected("--nodes names no node", remedy="Write for example --nodes gpu-1,gpu-2.", param="nodes")
    if not queue and not tenant:
        raise Rejected(
            "nobody is named for whom the nodes are kept",
            remedy="Give --queue or --tenant; `llmos drain NODE` keeps a node free of all work.",
        )
    if ends is not None and ends <= max(now, begins or 0.0):
        raise Rejected(f"--end {end}: that is not after its beginning", remedy="Give a later end.", param="end")

    async def ask() -> "ReservationView":
        async with await cluster.connect() as client:
            return await client.reserve(
                name, wanted, queue=queue, tenant=tenant, start=begins or 0.0, end=ends, requested_by=who()
            )

    view = asyncio.run(ask())
    if output == "table":
        print(f"{view.reservation} keeps {', '.join(view.nodes)} for {whom(view)}, {span(view)}")
    else:
        print_value(view, output)
    return Exit.OK


def unreserve(name: str, /, *, output: Output = "table", cluster: Cluster = Cluster()) -> int:
    """End a reservation: its nodes take everybody's work again.

    Parameters
    ----------
    name
        The reservation's name.
    """

    async def ask() -> "ReservationView":
        async with await cluster.connect() as client:
            return await client.unreserve(name, requested_by=who())

    view = asyncio.run(ask())
    if output == "table":
        print(f"{view.reservation} has ended")
    else:
        print_value(view, output)
    return Exit.OK


def read_time(text: str, option: str, now: float) -> float | None:
    """A time with its zone (ISO 8601), or `+2h` from `now` on, as Unix seconds. Raises `Rejected`."""
    if not text:
        return None
    if ahead := re.fullmatch(r"\+(\d{1,6})([smhd])", text):
        return now + int(ahead[1]) * UNITS[ahead[2]]
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None:
        what = "has no time zone" if at else "is no time"
        raise Rejected(f"{option} {text!r} {what}", remedy="Write 2026-12-01T08:00Z, or +2h from now on.")
    return at.timestamp()


def whom(view: "ReservationView") -> str:
    """For whom the nodes are kept."""
    return " of ".join(
        part for part in (view.tenant and f"tenant {view.tenant}", view.queue and f"queue {view.queue}") if part
    )


def span(view: "ReservationView") -> str:
    """From when until when."""
    begins = f"from {moment(view.start)}" if view.start and not view.active else "now"
    return f"{begins} until {moment(view.end)}" if view.end else f"{begins} until it is ended"


def table(views: "Sequence[ReservationView]") -> Any:
    """Header and rows."""
    rows = [
        (view.reservation, view.active, view.nodes, view.queue, view.tenant, moment(view.start), moment(view.end))
        for view in views
    ]
    return ["RESERVATION", "ACTIVE", "NODES", "QUEUE", "TENANT", "START", "END"], rows
