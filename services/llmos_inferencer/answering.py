"""From a request to its answer, good or bad: admitted, its inputs brought, computed by the session that it entered."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec.structs import replace

from llmos.bus import Delivery
from llmos.contracts.inference import InferenceAnswered, InferenceRequested, Input, Output, Usage
from llmos.errors import LlmosError, NotFound, Problem, Rejected
from llmos.service import Context
from llmos_inferencer.config import InferencerConfig
from llmos_inferencer.engine import Generation, Generator, Late, OutOfMemory, Piece
from llmos_inferencer.lanes import Job, Lanes
from llmos_inferencer.sessions import Session, Track

Relieve = Callable[[Session | None], Awaitable[bool]]
ARTIFACT_LIMIT = 32 << 20  # bytes of an input that the store keeps


class Cancelled(Rejected):
    """Nobody wants the answer any more."""

    code = "cancelled"


class Request:
    """A delivery that was not answered yet. `after` is the one of the same client whose answer goes first."""

    def __init__(self, delivery: Delivery[InferenceRequested], rank: int, now: float) -> None:
        self.delivery = delivery
        self.id = delivery.subject.rsplit(".", 1)[-1]
        self.rank = rank
        self.arrived = now
        self.work: Job | Generation | None = None
        self.task: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.after: Request | None = None
        self.cancelled = False
        self.said = 0  # deltas

    @property
    def begun(self) -> bool:
        return self.work is not None and self.work.begun

    def cancel(self) -> None:
        """The asker wants no more: what was generated is answered, what was not begun is not."""
        self.cancelled = True
        match self.work:
            case None:
                pass
            case Job() as job:
                if not job.done.done():
                    job.done.set_exception(Cancelled("the request was cancelled"))
            case generation:
                generation.stop()


class Found:
    """What a session gave for a request, and when it began (monotonic seconds)."""

    def __init__(self, outputs: list[Output], started_at: float, seconds: float, usage: Usage, first_at: float) -> None:
        self.outputs = outputs
        self.started_at = started_at
        self.seconds = seconds
        self.usage = usage
        self.first_at = first_at


class Answerer:
    """Answers a deployment's requests. `say(request, piece)` passes on what a stream generates; `relieve(session)`
    makes room when memory ran out, if it can.
    """

    def __init__(
        self,
        ctx: Context[InferencerConfig],
        deployment: str,
        lanes: Lanes,
        say: Callable[[Request, Piece], None],
        relieve: Relieve,
    ) -> None:
        self._ctx = ctx
        self._deployment = deployment
        self._lanes = lanes
        self._say = say
        self._relieve = relieve

    async def answer(self, request: Request, track: Track) -> InferenceAnswered:
        """The answer, good or bad. Raises nothing but what stops the task."""
        body, clock, id = request.delivery.body, self._ctx.clock, request.id
        waited = max(0.0, clock.now() - request.delivery.time)
        session: Session | None = None
        problem: Problem | None = None
        found: Found | None = None
        try:
            self._admit(request)
            session = await track.enter(body.deadline)
            found = await self._find(session, request)
        except LlmosError as error:
            problem = error.problem
        except Exception as error:  # the asker must hear of it, and one bad request must not stop a deployment
            self._ctx.log.exception("a request failed", deployment=self._deployment, id=id)
            problem = Problem("error", f"the request failed: {error}")
        finally:
            if session is not None:
                session.leave(clock.monotonic())
        answer = InferenceAnswered(
            id=id,
            model=session.version.model if session else self._deployment,
            version=session.version.version if session else 0,
            node=self._ctx.node,
            problem=problem,
            attempt=request.delivery.deliveries,
        )
        total = waited + clock.monotonic() - request.arrived
        if found is not None:
            queued = waited + max(0.0, found.started_at - request.arrived)
            self._ctx.telemetry.record("llmos.inference.queue_wait", queued, model=self._deployment)
            answer = replace(
                answer,
                outputs=found.outputs,
                queue_ms=_milliseconds(queued),
                compute_ms=_milliseconds(found.seconds),
                usage=found.usage,
                ttft_ms=_milliseconds(waited + found.first_at - request.arrived) if found.first_at else 0.0,
            )
        else:
            answer = replace(answer, queue_ms=_milliseconds(total))
        if session is not None:
            session.meter.count(answer, inputs=len(body.inputs), seconds=total)
        outcome = "failed" if problem else "answered"
        self._ctx.telemetry.count("llmos.inference.requests", model=self._deployment, outcome=outcome)
        return answer

    def _admit(self, request: Request) -> None:
        body = request.delivery.body
        limit = self._ctx.config.max_inputs
        if len(body.inputs) * max(1, body.params.n) > limit:
            raise Rejected(
                f"a request may carry {limit} inputs, this one has {len(body.inputs)}",
                remedy="Split it into several requests.",
                param="inputs",
            )
        if body.deadline is not None and body.deadline <= self._ctx.clock.now():
            raise Late("the deadline passed before the request arrived", remedy="Allow more time.")
        if request.cancelled:
            raise Cancelled("the request was cancelled")

    async def _find(self, session: Session, request: Request) -> Found:
        body = request.delivery.body
        if not body.inputs:
            return Found([], request.arrived, 0.0, Usage(), 0.0)
        inputs = await self._bring(body.inputs, session.engine.takes)
        if request.cancelled:
            raise Cancelled("the request was cancelled")
        try:
            return await self._compute(session, request, inputs)
        except OutOfMemory:
            if request.said or not await self._relieve(session):
                raise
            return await self._compute(session, request, inputs)

    async def _compute(self, session: Session, request: Request, inputs: Sequence[Input]) -> Found:
        body, generator = request.delivery.body, session.generator
        if generator is not None:
            return await self._generate(generator, replace(body, inputs=list(inputs)), request)
        assert session.batch is not None  # it is one or the other
        prepared = await self._lanes.prepare(session.batch, inputs)
        job = request.work = Job(self._deployment, session.batch, prepared, body)
        if request.cancelled:
            raise Cancelled("the request was cancelled")
        self._lanes.submit(job, request.rank)
        try:
            outputs = await job.done
        except BaseException:
            self._lanes.withdraw(job)
            raise
        return Found(outputs, job.started_at, job.seconds, Usage(sum(each.tokens for each in prepared)), 0.0)

    async def _generate(self, generator: Generator, body: InferenceRequested, request: Request) -> Found:
        generation = request.work = generator.submit(body, request.rank, lambda piece: self._say(request, piece))
        late = body.deadline - self._ctx.clock.now() if body.deadline is not None else None
        try:
            async with asyncio.timeout(late):
                generated = await generation.done
        except TimeoutError:
            raise Late("the deadline passed while the answer was generated", remedy="Allow more time.") from None
        finally:
            if not generation.done.done() or generation.done.cancelled():
                generation.withdraw()
        seconds = self._ctx.clock.monotonic() - generated.started_at
        return Found(generated.outputs, generated.started_at, seconds, generated.usage, generated.first_at)

    async def _bring(self, inputs: Sequence[str | Input], takes: str) -> list[Input]:
        """Every input as an `Input`, with the content of the artifact it names. Raises `Rejected` or `Busy`."""
        return [
            Input(text=each)
            if isinstance(each, str)
            else each
            if not each.artifact
            else await self._fetch(at, each, takes)
            for at, each in enumerate(inputs)
        ]

    async def _fetch(self, at: int, given: Input, takes: str) -> Input:
        try:
            data = await self._ctx.store.get_bytes(given.artifact, limit=ARTIFACT_LIMIT)
            content: Any = data.decode() if takes == "text" else data
        except NotFound as error:
            raise Rejected(error.problem.message, remedy="Upload it first.", param=f"inputs[{at}].artifact") from error
        except UnicodeDecodeError as error:
            raise Rejected(f"the artifact is no UTF-8 text: {error}", param=f"inputs[{at}].artifact") from error
        fields: dict[str, Any] = {takes: content, "artifact": ""}
        return replace(given, **fields)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
