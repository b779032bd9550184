"""Answering calls. Only the leader does: its state is the newest, and what it is asked to change it can say.

While nobody leads, questions wait in the queue; one that a deposed leader had in hand is given back, and answered by
the next.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from llmos.contracts.envelope import Envelope
from llmos.contracts.jobs import (
    CancelRequested,
    ExplainRequested,
    Explanation,
    JobCancelling,
    JobList,
    JobRequested,
    JobsRequested,
    JobView,
)
from llmos.contracts.nodes import NodeList, NodesRequested
from llmos.errors import NotFound
from llmos.service import Context
from llmos_scheduler.brain import Brain
from llmos_scheduler.effects import Emit
from llmos_scheduler.explain import explain
from llmos_scheduler.following import Following
from llmos_scheduler.leading import Leadership
from llmos_scheduler.operators import Operators
from llmos_scheduler.performing import Performing
from llmos_scheduler.records import Job, TurnedAway
from llmos_scheduler.views import view_job, view_jobs

Handler = Callable[[Any, Envelope], Awaitable[Struct]]


class Answering:
    """The calls of the scheduler."""

    def __init__(
        self,
        ctx: Context[Any],
        following: Following,
        leadership: Leadership,
        performing: Performing,
        brain: Callable[[], Brain],
    ) -> None:
        self._ctx = ctx
        self._following = following
        self._leadership = leadership
        self._performing = performing
        self._brain = brain

    async def run(self) -> None:
        """Answer until cancelled."""
        handlers: dict[str, Handler] = {
            "jobs": self.on_jobs_requested,
            "job": self.on_job_requested,
            "explain": self.on_explain_requested,
            "cancel": self.on_cancel_requested,
        }
        operators = Operators(lambda: self._following.state, self._brain, self._say, self._ctx.clock)
        handlers = handlers | operators.handlers()
        handlers["nodes"] = partial(self.on_nodes_requested, handlers["nodes"])
        await self._ctx.bus.serve("scheduler", {verb: self._led(handler) for verb, handler in handlers.items()})

    def _led(self, handler: Handler) -> Handler:
        async def answer(request: Any, envelope: Envelope) -> Struct:
            await self._leadership.confirm()
            return await handler(request, envelope)

        return answer

    async def _say(self, fact: Emit) -> None:
        """Store a fact; when it returns, the state holds it."""
        (outcome,) = await self._performing.say([fact])
        if not isinstance(outcome, int):
            raise outcome
        await self._following.came_back(outcome)

    def _find(self, job: str) -> Job | TurnedAway:
        state = self._following.state
        found = state.jobs.get(job) or state.turned_away.get(job)
        if found is None:
            raise NotFound(f"there is no job {job!r}", remedy="`llmos get jobs` lists the jobs.", param="job")
        return found

    async def on_jobs_requested(self, request: JobsRequested, _envelope: Envelope) -> Struct:
        return JobList(view_jobs(self._following.state, request))

    async def on_job_requested(self, request: JobRequested, _envelope: Envelope) -> JobView:
        return view_job(self._find(request.job))

    async def on_explain_requested(self, request: ExplainRequested, _envelope: Envelope) -> Explanation:
        state = self._following.state
        return explain(state, self._brain(), self._find(request.job), self._ctx.clock.now())

    async def on_cancel_requested(self, request: CancelRequested, envelope: Envelope) -> JobView:
        """The job is cancelled as soon as what runs has stopped; one that has ended stays as it ended."""
        job = self._find(request.job)
        if isinstance(job, Job) and not job.ended and job.cancelling_at is None:
            event = JobCancelling(job.id, job.tenant, request.requested_by, request.reason)
            await self._say(Emit(event, f"{job.id}.cancelling", envelope.id, job.traceparent))
        return view_job(self._find(request.job))

    async def on_nodes_requested(self, view: Handler, request: NodesRequested, envelope: Envelope) -> NodeList:
        """As the operators' answer, and which node's scheduler this is."""
        listed = await view(request, envelope)
        assert isinstance(listed, NodeList)
        here, name = self._ctx.node, self._ctx.name
        return NodeList([replace(node, leads=[name]) if node.node == here else node for node in listed.nodes])
