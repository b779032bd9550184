"""What the bus's verbs cost next to bare nats-py, in one run on one nats-server: `python tests/bench/bus_cost.py`.

Latencies are medians of calls made one after another, taken in turns with the bare ones; throughputs have 200 publishes
under way, and one reader. Every pair runs on uvloop, as services do, in one process with its peer.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path

import nats
import uvloop

from llmos.bus import Bus
from llmos.cancel import cancel
from llmos.contracts.envelope import Envelope
from llmos.contracts.jobs import JobCancelled, JobList, JobsRequested
from llmos.natsserver import NatsServer

UNDER_WAY = 200
ROUND = 50
Act = Callable[[], Awaitable[object]]


async def medians(count: int, *acts: Act) -> list[float]:
    """Median milliseconds of each act; the acts take turns, so that a noisy moment hits all."""
    times: list[list[float]] = [[] for _ in acts]
    for turn in range(-1, max(1, count // ROUND)):  # the first turn warms up
        for act, kept in zip(acts, times, strict=True):
            for _ in range(ROUND):
                began = time.perf_counter()
                await act()
                if turn >= 0:
                    kept.append(1000 * (time.perf_counter() - began))
    return [statistics.median(kept) for kept in times]


async def rate(count: int, act: Callable[[int], Awaitable[object]]) -> float:
    """Acts a second with `UNDER_WAY` of them at a time."""
    numbers = iter(range(count))

    async def one_after_another() -> None:
        for number in numbers:
            await act(number)

    began = time.perf_counter()
    await asyncio.gather(*(one_after_another() for _ in range(UNDER_WAY)))
    return count / (time.perf_counter() - began)


def show(name: str, unit: str, ours: float, bare: float, of: str) -> None:
    print(f"{name:<34} {ours:>9.3f} {unit:<6} {bare:>9.3f} {unit:<6} {ours / bare:>5.2f}x of {of}")


async def measure(calls: int, messages: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = await NatsServer(Path(folder)).start()
        bus, peer = [await Bus.connect(server.url, source=f"bench/{name}") for name in ("asker", "answerer")]
        nc, other = await nats.connect(server.url), await nats.connect(server.url)
        js = nc.jetstream()
        await js.add_stream(name="BARE", subjects=["bare.*"])

        async def jobs(request: JobsRequested, envelope: Envelope) -> JobList:
            return JobList()

        async def respond(msg: nats.aio.msg.Msg) -> None:
            await msg.respond(b'{"jobs":[]}')

        await other.subscribe("core.jobs", cb=respond)
        serving = asyncio.create_task(peer.serve("scheduler", {"jobs": jobs}))
        fact = JobCancelled("j", "acme")

        print(f"{'':<34} {'bus':>9} {'':<6} {'bare':>9}")
        call, core = await medians(
            calls,
            lambda: bus.call("scheduler", "jobs", JobsRequested()),
            lambda: nc.request("core.jobs", b"{}", timeout=5),
        )
        show("call through the work queue", "ms", call, core, "a core request")
        told, published = await medians(
            calls, lambda: bus.emit(fact), lambda: js.publish("bare.x", b'{"job":"j","tenant":"acme"}', timeout=5)
        )
        show("emit, acked", "ms", told, published, "js.publish")
        show("call through the work queue", "ms", call, core + published, "core request + js.publish")

        bare = await rate(messages, lambda n: js.publish("bare.x", b'{"job":"j","tenant":"acme"}', timeout=30))
        ours = await rate(messages, lambda n: bus.emit(fact))
        show(f"emit, {UNDER_WAY} under way", "/s", ours, bare, "js.publish")

        began, heard = time.perf_counter(), 0
        async with aclosing(bus.follow("EVENTS")) as events:
            async for message in events:
                heard += 1
                if message.pending == 0:
                    break
        ours = heard / (time.perf_counter() - began)
        began, heard = time.perf_counter(), 0
        ordered = await js.subscribe("bare.*", ordered_consumer=True)
        async for message in ordered.messages:
            heard += 1
            if message.metadata.num_pending == 0:
                break
        bare = heard / (time.perf_counter() - began)
        show("follow from the beginning", "/s", ours, bare, "an ordered consumer")

        await cancel(serving)
        for connection in (bus, peer, nc, other):
            await connection.close()
        await server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--messages", type=int, default=20_000)
    options = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(measure(options.calls, options.messages))


if __name__ == "__main__":
    main()
