"""One deployment's door: pulls its requests, has them computed by the session of the moment, answers, acks.

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
from llmos.contracts.models import ModelVersion
from llmos.errors import LlmosError, Problem, Rejected
from llmos.service import Context
from llmos_inferencer.config import InferencerConfig
from llmos_inferencer.engine import Engine, Tokens
from llmos_inferencer.lanes import Job, Lanes, Late
from llmos_inferencer.meter import Meter

ACK_WAIT_S = 12.0
ANSWERED = next(row.ce_type for row in subjects.REPLIES if row.type is InferenceAnswered)
INLINE_CHARACTERS = 1024  # tokenised in 0.2 ms at most, which is what the way to a thread and back costs
Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Session:
    """A loaded version: how many requests use it, and since when none does."""

    def __init__(self, engine: Engine, version: ModelVersion, memory: int, meter: Meter, now: float) -> None:
        self.engine = engine
        self.version = version
        self.memory = memory
        self.meter = meter
        self.used_at = now
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()

    def enter(self) -> "Session":
        """One more request uses it."""
        self.active += 1
        self.idle.clear()
        return self

    def leave(self, now: float) -> None:
        """One request less."""
        self.active -= 1
        self.used_at = now
        if not self.active:
            self.idle.set()


class Request:
    """A delivery that was not answered yet."""

    def __init__(self, delivery: Delivery[InferenceRequested], rank: int, now: float) -> None:
        self.delivery = delivery
        self.rank = rank
        self.arrived = now
        self.job: Job | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def begun(self) -> bool:
        return self.job is not None and self.job.begun


class Serving:
    """A deployment on this node. `demand` is called when a request finds no session: requests are held until
    `switch`.
    """

    def __init__(
        self,
        ctx: Context[InferencerConfig],
        deployment: str,
        tenant: str,
        lanes: Lanes,
        *,
        demand: Callable[[], None],
        spawn: Spawn,
    ) -> None:
        self.deployment = deployment
        self.tenant = tenant
        self.session: Session | None = None
        self._ctx = ctx
        self._lanes = lanes
        self._demand = demand
        self._spawn = spawn
        self._open: set[Request] = set()
        self._held: list[asyncio.Future[Session]] = []
        self._tasks: list[asyncio.Task[None]] = []

    # --- sessions ---

    def switch(self, session: Session) -> Session | None:
        """From now on `session` takes every request, those that were held first. The one before, still in use
        perhaps.
        """
        old, self.session = self.session, session
        held, self._held = self._held, []
        for future in held:
            if not future.done():
                future.set_result(session.enter())
        return old

    def detach(self) -> Session | None:
        """Take the session out; requests are held from now on."""
        old, self.session = self.session, None
        return old

    async def _enter(self, deadline: float | None) -> Session:
        if self.session is not None:
            return self.session.enter()
        future: asyncio.Future[Session] = asyncio.get_running_loop().create_future()
        self._held.append(future)
        self._demand()
        entered = False
        try:
            async with asyncio.timeout(deadline - self._ctx.clock.now() if deadline is not None else None):
                session = await future
            entered = True
            return session
        except TimeoutError:
            raise Late("the deadline passed while the model was loaded", remedy="Allow more time.") from None
        finally:
            if not entered:
                self._give_up(future)

    def _give_up(self, future: asyncio.Future[Session]) -> None:
        if future in self._held:
            self._held.remove(future)
        if future.done() and not future.cancelled():  # handed over in the very moment in which the request ended
            future.result().leave(self._ctx.clock.monotonic())

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
        await cancel(*(request.task for request in self._open if not request.begun))
        await asyncio.gather(*(request.task for request in self._open if request.task is not None))

    async def _pull(self, name: Class, rank: int) -> None:
        consumer, filter = subjects.infer_consumer(self.deployment, name)
        slots = self._ctx.config.serve_slots
        async for delivery in self._ctx.bus.work(
            "INFER",
            consumer,
            filter,
            InferenceRequested,
            slots=lambda: slots - sum(request.rank == rank for request in self._open),
            ack_wait=ACK_WAIT_S,
        ):
            request = Request(delivery, rank, self._ctx.clock.monotonic())
            self._open.add(request)
            request.task = asyncio.create_task(self._handle(request))
            request.task.add_done_callback(partial(self._close, request))

    def _close(self, request: Request, _: asyncio.Task[None]) -> None:
        self._open.discard(request)

    async def _keep(self) -> None:
        """Tell the bus of requests that wait or compute for long that they are in hand."""
        while True:
            await asyncio.sleep(ACK_WAIT_S / 3)
            before = self._ctx.clock.monotonic() - ACK_WAIT_S / 3
            for request in [request for request in self._open if request.arrived < before]:
                with suppress(Exception):  # a connection that is away: the next round, or the redelivery, mends it
                    await request.delivery.in_progress()

    # --- answering ---

    async def _handle(self, request: Request) -> None:
        delivery = request.delivery
        try:
            id = delivery.subject.rsplit(".", 1)[-1]
            try:
                reply = subjects.reply(delivery.body.client, id)
            except Rejected as error:
                await delivery.dead(f"nobody can be answered: {error}")
                return
            with self._ctx.telemetry.span(
                "infer", parent=delivery.envelope.traceparent, kind="consumer", deployment=self.deployment
            ):
                answer = await self._answer(request, id)
                await self._publish(reply, answer, delivery)
            await delivery.ack()
        except asyncio.CancelledError:
            with suppress(Exception):  # without a connection the ack wait does it
                await delivery.nak()
            raise
        except Exception:  # one request must not stop a deployment: it is redelivered, and dead after five times
            self._ctx.log.exception("a request was left", deployment=self.deployment, id=delivery.envelope.id)

    async def _answer(self, request: Request, id: str) -> InferenceAnswered:
        """The answer, good or bad. Raises nothing but what stops the task."""
        body, clock = request.delivery.body, self._ctx.clock
        waited = max(0.0, clock.now() - request.delivery.time)
        session: Session | None = None
        problem: Problem | None = None
        try:
            self._admit(body)
            session = await self._enter(body.deadline)
            job = await self._compute(session, request)
        except LlmosError as error:
            problem = error.problem
        except Exception as error:  # the asker must hear of it, and one bad request must not stop a deployment
            self._ctx.log.exception("a request failed", deployment=self.deployment, id=id)
            problem = Problem("error", f"the request failed: {error}")
        finally:
            if session is not None:
                session.leave(clock.monotonic())
        total = waited + clock.monotonic() - request.arrived
        if session is not None:
            session.meter.count(inputs=len(body.inputs), seconds=total, failed=problem is not None)
        outcome = "failed" if problem else "answered"
        self._ctx.telemetry.count("llmos.inference.requests", model=self.deployment, outcome=outcome)
        answer = InferenceAnswered(
            id=id,
            model=session.version.model if session else self.deployment,
            version=session.version.version if session else 0,
            node=self._ctx.node,
            problem=problem,
            queue_ms=_milliseconds(total),
        )
        if problem is not None:
            return answer
        queued = waited + max(0.0, job.started_at - request.arrived)
        self._ctx.telemetry.record("llmos.inference.queue_wait", queued, model=self.deployment)
        outputs = [output for output in job.outputs if output is not None]
        return replace(answer, outputs=outputs, queue_ms=_milliseconds(queued), compute_ms=_milliseconds(job.seconds))

    def _admit(self, body: InferenceRequested) -> None:
        limit = self._ctx.config.max_inputs
        if len(body.inputs) > limit:
            raise Rejected(
                f"a request may carry {limit} inputs, this one has {len(body.inputs)}",
                remedy="Split it into several requests.",
                param="inputs",
            )
        if body.deadline is not None and body.deadline <= self._ctx.clock.now():
            raise Late("the deadline passed before the request arrived", remedy="Allow more time.")

    async def _compute(self, session: Session, request: Request) -> Job:
        body = request.delivery.body
        job = Job(self.deployment, session.engine, len(body.inputs), body.top, body.deadline)
        if not body.inputs:
            job.started_at = request.arrived
            return job
        tokens = await _tokens(session.engine, [each if isinstance(each, str) else each.text for each in body.inputs])
        request.job = job
        self._lanes.submit(job, tokens, request.rank)
        try:
            await job.done
        except asyncio.CancelledError:
            self._lanes.withdraw(job)
            raise
        return job

    async def _publish(self, reply: str, answer: InferenceAnswered, delivery: Delivery[InferenceRequested]) -> None:
        cause = delivery.envelope.id
        options: dict[str, Any] = {"type": ANSWERED, "id": f"{cause}.answer", "cause": cause}
        try:
            await self._ctx.bus.publish(reply, answer, **options)
        except Rejected as error:  # too many outputs for one message
            await self._ctx.bus.publish(reply, replace(answer, outputs=[], problem=error.problem), **options)


async def _tokens(engine: Engine, texts: list[str]) -> list[Tokens]:
    if sum(map(len, texts)) <= INLINE_CHARACTERS:
        return engine.encode(texts)
    return await asyncio.to_thread(engine.encode, texts)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
