"""One deployment's door: pulls its requests, has them answered, says the answers in order, acks.

An answer is published to the REPLY stream and confirmed before its request is acked. A crash in between answers the
request twice, under one id; no crash and no lost connection answers it never.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from msgspec.structs import replace

from llmos.bus import Delivery
from llmos.cancel import cancel
from llmos.contracts import subjects
from llmos.contracts.inference import CLASSES, Class, InferenceAnswered, InferenceRequested
from llmos.errors import Rejected
from llmos.service import Context
from llmos_inferencer.answering import Answerer, Relieve, Request
from llmos_inferencer.askers import Askers
from llmos_inferencer.config import InferencerConfig
from llmos_inferencer.core import chosen
from llmos_inferencer.lanes import Lanes
from llmos_inferencer.sessions import Track
from llmos_inferencer.streaming import Streams

ACK_WAIT_S = 3.0  # what a replica held that was killed is answered elsewhere so much later
ANSWERED = next(row.ce_type for row in subjects.REPLIES if row.type is InferenceAnswered)
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Serving:
    """A deployment on this node. `demand` is called when a request finds no session on its track."""

    def __init__(
        self,
        ctx: Context[InferencerConfig],
        deployment: str,
        tenant: str,
        lanes: Lanes,
        askers: Askers,
        *,
        demand: Callable[[Track], None],
        relieve: Relieve,
        spawn: Spawn,
    ) -> None:
        self.deployment = deployment
        self.tenant = tenant
        self.main = Track(deployment, deployment, ctx.clock, demand=demand)
        self.canary = Track(f"{deployment}@canary", deployment, ctx.clock, demand=demand)
        self.weight = 0
        self._ctx = ctx
        self._askers = askers
        self._spawn = spawn
        self._streams = Streams(ctx, spawn)
        self._answerer = Answerer(ctx, deployment, lanes, self._streams.say, relieve)
        self._open: dict[str, Request] = {}
        self._last: dict[tuple[str, int], Request] = {}  # the newest request of each client and class
        self._tasks: list[asyncio.Task[None]] = []

    def route(self, id: str) -> Track:
        """The track that answers a request."""
        return self.canary if self.weight and chosen(id, self.weight) else self.main

    # --- pulling ---

    def start(self) -> None:
        """Pull requests of both classes; a second call changes nothing."""
        if not self._tasks:
            pulls = [self._spawn(self._pull(name, rank)) for rank, name in enumerate(CLASSES)]
            self._tasks = [*pulls, self._spawn(self._keep())]

    async def stop(self) -> None:
        """Stop pulling, finish the requests that were begun, give the others back at once."""
        tasks, self._tasks = self._tasks, []
        await cancel(*tasks)
        await cancel(*(request.task for request in self._open.values() if not request.begun))
        await asyncio.gather(*(request.task for request in self._open.values() if request.task is not None))

    async def _pull(self, name: Class, rank: int) -> None:
        consumer, filter = subjects.infer_consumer(self.deployment, name)
        async for delivery in self._ctx.bus.work(
            "INFER",
            consumer,
            filter,
            InferenceRequested,
            slots=lambda: self._room(rank),
            ack_wait=ACK_WAIT_S,
        ):
            request = Request(delivery, rank, self._ctx.clock.monotonic())
            request.cancelled = self._askers.recalled(request.id)
            key = (delivery.body.client, rank)
            request.after, self._last[key] = self._last.get(key), request
            self._open[request.id] = request
            request.task = asyncio.create_task(self._handle(request))
            request.task.add_done_callback(partial(self._close, request))

    def _room(self, rank: int) -> int:
        """How many more requests of a class may come: a generator says how many it holds at a time."""
        generator = self.main.session.generator if self.main.session else None
        slots = self._ctx.config.serve_slots
        if generator is not None:
            slots = min(slots, generator.capacity)
        return slots - sum(request.rank == rank for request in self._open.values())

    def _close(self, request: Request, _: asyncio.Task[None]) -> None:
        if self._open.get(request.id) is request:
            del self._open[request.id]
        key = (request.delivery.body.client, request.rank)
        if self._last.get(key) is request:
            del self._last[key]
        request.after = None
        request.ended.set_result(None)

    def recall(self, id: str) -> None:
        """The asker of a request wants no more."""
        request = self._open.get(id)
        if request is not None:
            request.cancel()

    async def _keep(self) -> None:
        """Tell the bus of requests that wait or compute for long that they are in hand."""
        while True:
            await asyncio.sleep(ACK_WAIT_S / 3)
            now = self._ctx.clock.monotonic()
            before = now - ACK_WAIT_S / 3
            for request in [request for request in self._open.values() if request.arrived < before]:
                body = request.delivery.body
                if self._askers.gone(body.client, body.keep, request.arrived, now):
                    request.cancel()
                with suppress(Exception):  # a connection that is away: the next round, or the redelivery, mends it
                    await request.delivery.in_progress()

    # --- answering ---

    async def _handle(self, request: Request) -> None:
        delivery = request.delivery
        try:
            try:
                reply = subjects.reply(delivery.body.client, request.id)
            except Rejected as error:
                await delivery.dead(f"nobody can be answered: {error}")
                return
            with self._ctx.telemetry.span(
                "infer", parent=delivery.envelope.traceparent, kind="consumer", deployment=self.deployment
            ):
                answer = await self._answerer.answer(request, self.route(request.id))
                if request.after is not None and not delivery.body.params.stream:
                    await asyncio.shield(request.after.ended)
                await self._streams.flush(request)
                await self._publish(reply, answer, delivery)
            await delivery.ack()
        except asyncio.CancelledError:
            with suppress(Exception):  # without a connection the ack wait does it
                await delivery.nak()
            raise
        except Exception:  # one request must not stop a deployment: it is redelivered, and dead after five times
            self._ctx.log.exception("a request was left", deployment=self.deployment, id=delivery.envelope.id)

    async def _publish(self, reply: str, answer: InferenceAnswered, delivery: Delivery[InferenceRequested]) -> None:
        cause = delivery.envelope.id
        options: dict[str, Any] = {"type": ANSWERED, "id": f"{cause}.answer", "cause": cause}
        try:
            await self._ctx.bus.publish(reply, answer, **options)
        except Rejected as error:  # too many outputs for one message
            await self._ctx.bus.publish(reply, replace(answer, outputs=[], problem=error.problem), **options)
