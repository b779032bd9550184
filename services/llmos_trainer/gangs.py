"""The service's side of a gang: where its members meet, and the processes that this node adds to it."""

import asyncio
import fcntl
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import msgspec

from llmos.bus import Conflict
from llmos.cancel import cancel
from llmos.contracts.tasks import GangMeeting, TaskAssigned
from llmos_trainer import core
from llmos_trainer.core import GangBroken
from llmos_trainer.orders import End, Failed, Finished, GangOrder, Listening, Report, Snapshotted, Stopped, TrainOrder
from llmos_trainer.runs import Run

TARGET = "llmos_trainer.training:run"
MEETING_S = 600.0  # so long a member waits for rank 0 to have fetched what it needs
_POLL_S = (0.1, 1.0)  # from and to
_SIOCGIFADDR = 0x8915

Ended = tuple[End | None, str]


def processes(assigned: TaskAssigned) -> int:
    """How many processes train on this node: one for each GPU."""
    return max(1, len(assigned.devices))


def in_gang(assigned: TaskAssigned) -> bool:
    """Whether the task is trained by more than one process, on this node or several."""
    return assigned.world * processes(assigned) > 1


def key(assigned: TaskAssigned) -> str:
    """The key of the meeting point in the bucket `state`."""
    return f"gang.{assigned.task}.{assigned.lease}"


async def find_meeting(run: Run) -> GangMeeting:
    """Where rank 0 waits for the others. Raises `GangBroken` when it does not say so in time."""
    bucket, pause = run.context.bus.bucket("state"), _POLL_S[0]
    with suppress(TimeoutError):
        async with asyncio.timeout(MEETING_S):
            while True:
                entry = await bucket.get(key(run.assigned), GangMeeting)
                if entry is not None:
                    return entry.value
                await asyncio.sleep(pause)
                pause = min(_POLL_S[1], pause * 1.5)
    raise GangBroken(f"rank 0 of the gang did not say within {MEETING_S:g} s where to meet")


async def open_meeting(run: Run, meeting: GangMeeting) -> None:
    """Say where to meet, and clear away what earlier leases of the task left behind.

    Raises `GangBroken` when this lease's gang met before: its members know a process that is gone.
    """
    bucket, own = run.context.bus.bucket("state"), key(run.assigned)
    for stale in await bucket.keys(f"gang.{run.assigned.task}."):
        if stale != own:
            await bucket.delete(stale)
    try:
        await bucket.create(own, meeting)
    except Conflict as error:
        raise GangBroken("rank 0 of the gang was started again, and the others know the one that is gone") from error


async def close_meeting(run: Run) -> None:
    """Take the meeting point away: the lease is over."""
    await run.context.bus.bucket("state").delete(key(run.assigned))


def orders(run: Run, order: TrainOrder, meeting: GangMeeting | None) -> list[TrainOrder]:
    """The order of each process of this node. Without a `meeting` the first of them opens it."""
    assigned, local = run.assigned, processes(run.assigned)
    address, port, token = own_address(run), 0, token_hex(16)
    if meeting is not None:
        address, port, token = meeting.address, meeting.port, meeting.token
    return [
        msgspec.structs.replace(
            order,
            work=f"{order.work}-{at}",
            device=f"cuda:{at}" if assigned.devices else "cpu",
            gang=GangOrder(assigned.rank * local + at, assigned.world * local, address, token, port),
        )
        for at in range(local)
    ]


async def together(
    run: Run,
    parts: Sequence[TrainOrder],
    env: Mapping[str, str],
    on_snapshot: Callable[[Snapshotted], None],
    opened: Callable[[GangMeeting], Awaitable[None]],
) -> Ended:
    """Run this node's processes to their end, which is one for all: what is told of it is what tells most.

    `opened` hears where the gang's first process listens, if that is among them. What it raises ends all.
    """
    first, *others = parts
    assert first.gang is not None
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def hear(report: Report) -> None:
        if isinstance(report, Snapshotted):
            on_snapshot(report)
        elif isinstance(report, Listening) and not port.done():
            port.set_result(report.port)

    tasks = [asyncio.create_task(run.child(TARGET, first, env, hear))]
    try:
        gang = first.gang
        if gang.rank == 0:
            either: tuple[asyncio.Future[Any], ...] = (tasks[0], port)
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not port.done():
                return await tasks[0]
            gang = msgspec.structs.replace(gang, port=port.result())
            assigned = run.assigned
            await opened(GangMeeting(assigned.task, assigned.lease, gang.address, gang.port, gang.token))
        for order in others:
            assert order.gang is not None
            order = msgspec.structs.replace(order, gang=msgspec.structs.replace(order.gang, port=gang.port))
            tasks.append(asyncio.create_task(run.child(TARGET, order, env, quiet=True)))
        waiting = set(tasks)
        while waiting:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if waiting and not all(isinstance(task.result()[0], Finished | Stopped) for task in done):
                await asyncio.wait(
                    waiting, timeout=core.GRACE_S
                )  # they see it themselves, and one may save what is done
                break
        await cancel(*waiting)  # kills its process
        return core.most_telling([task.result() for task in tasks if not task.cancelled()])
    finally:
        await cancel(*tasks)


async def heard_of(run: Run, end: End | None) -> None:
    """Where a peer was lost: wait a moment for its own story, which ends the lease, before this one is told."""
    if isinstance(end, Failed) and end.problem.code == GangBroken.code and run.assigned.world > 1:
        await run.told_within(core.GRACE_S)


def own_address(run: Run) -> str:
    """The address at which the others reach this node: as set, or that from which it reaches the bus."""
    if run.assigned.world == 1:
        return "127.0.0.1"
    return run.context.config.address or towards(run.context.config.nats_url)


def towards(url: str) -> str:
    """The local address that packets to the server of `url` (the first of several) leave from."""
    parts = urlsplit(url.split(",")[0])
    host, port = parts.hostname or "127.0.0.1", parts.port or 4222
    for family, kind, protocol, _, target in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
        with suppress(OSError), socket.socket(family, kind, protocol) as probe:
            probe.connect(target)  # of a datagram socket: nothing is sent
            return str(probe.getsockname()[0])
    return "127.0.0.1"


def network(address: str, given: Mapping[str, str]) -> dict[str, str]:
    """What gloo has to be told lest it listen where the host's name points to, often 127.0.1.1; `given` (the
    environment) comes first."""
    name = interface(address)
    return {"GLOO_SOCKET_IFNAME": name} if name and "GLOO_SOCKET_IFNAME" not in given else {}


def interface(address: str) -> str:
    """The network interface that has the IPv4 address; empty when that can't be told."""
    if sys.platform != "linux":
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return ""
