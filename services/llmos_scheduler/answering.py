"""Answering calls. Only the leader does: its state is the newest, and what it is asked to change it can say.

While nobody leads, questions wait in the queue; one that a deposed leader had in hand is given back, and answered by
the next.
"""

from collections.abc import Awaitable, Callable
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
from llmos_scheduler.effects import Emit
from llmos_scheduler.explain import explain
from llmos_scheduler.following import Following
from llmos_scheduler.leading import Leadership
from llmos_scheduler.performing import Performing
from llmos_scheduler.placement import Policy
from llmos_scheduler.records import Job, TurnedAway
from llmos_scheduler.views import view_job, view_jobs, view_nodes

Handler = Callable[[Any, Envelope], Awaitable[Struct]]


class Answering:
    """The calls of the scheduler."""

    def __init__(
        self,
        ctx: Context[Any],
        following: Following,
        leadership: Leadership,
        performing: Performing,
        policy: Policy,
    ) -> None:
        self._ctx = ctx
        self._following = following
        self._leadership = leadership
        self._performing = performing
        self._policy = policy

    async def run(self) -> None:
        """Answer until cancelled."""
        handlers: dict[str, Handler] = {
            "jobs": self.on_jobs_requested,
            "job": self.on_job_requested,
            "explain": self.on_explain_requested,
            "cancel": self.on_cancel_requested,
            "nodes": self.on_nodes_requested,
        }
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
        return explain(state, self._find(request.job), self._ctx.clock.now(), policy=self._policy)

    async def on_cancel_requested(self, request: CancelRequested, envelope: Envelope) -> JobView:
        """The job is cancelled as soon as what runs has stopped; one that has ended stays as it ended."""
        job = self._find(request.job)
        if isinstance(job, Job) and not job.ended and job.cancelling_at is None:
            event = JobCancelling(job.id, job.tenant, request.requested_by, request.reason)
            await self._say(Emit(event, f"{job.id}.cancelling", envelope.id, job.traceparent))
        return view_job(self._find(request.job))

    async def on_nodes_requested(self, _request: NodesRequested, _envelope: Envelope) -> Struct:
        views = view_nodes(self._following.state)
        return NodeList(
            [replace(view, leads=[self._ctx.name]) if view.node == self._ctx.node else view for view in views]
        )
