"""Answers what operators ask: nodes, queues, reservations, and what would become of a job."""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from msgspec import Struct

from llmos.clock import Clock
from llmos.contracts.deployments import DeploymentChanged, RollbackRequested, ShiftRequested
from llmos.contracts.envelope import Envelope
from llmos.contracts.jobs import Explanation, PlanRequested
from llmos.contracts.nodes import CordonRequested, NodeList, NodesRequested, NodeView, UncordonRequested
from llmos.contracts.queues import (
    QueueList,
    QueuesRequested,
    ReservationList,
    ReservationsRequested,
    ReservationView,
    ReserveRequested,
    SetQueuesRequested,
    UnreserveRequested,
)
from llmos.errors import NotFound, Rejected
from llmos.ids import is_token
from llmos.specs import check_spec
from llmos_scheduler import operating, shifting
from llmos_scheduler.brain import Brain
from llmos_scheduler.effects import Emit
from llmos_scheduler.explain import explain
from llmos_scheduler.foresight import foresee
from llmos_scheduler.operating import MOST_TOLD
from llmos_scheduler.records import State
from llmos_scheduler.views_cluster import view_nodes, view_queues, view_reservation, view_reservations

Handler = Callable[[Any, Envelope], Awaitable[Struct]]


class Operators:
    """The calls of operators. `say` stores a fact; when it returns, the state holds it."""

    def __init__(
        self,
        state: Callable[[], State],
        brain: Callable[[], Brain],
        say: Callable[[Emit], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._state = state
        self._brain = brain
        self._say = say
        self._clock = clock

    def handlers(self) -> dict[str, Handler]:
        """By the call's verb."""
        return {
            "nodes": self.on_nodes_requested,
            "plan": self.on_plan_requested,
            "cordon": self.on_cordon_requested,
            "uncordon": self.on_uncordon_requested,
            "queues": self.on_queues_requested,
            "set_queues": self.on_set_queues_requested,
            "reserve": self.on_reserve_requested,
            "unreserve": self.on_unreserve_requested,
            "reservations": self.on_reservations_requested,
            "shift": self.on_shift_requested,
            "rollback": self.on_rollback_requested,
        }

    async def on_nodes_requested(self, _request: NodesRequested, _envelope: Envelope) -> NodeList:
        return NodeList(view_nodes(self._state(), self._clock.now()))

    async def on_plan_requested(self, request: PlanRequested, _envelope: Envelope) -> Explanation:
        """A known job is explained; a spec is planned as if it were submitted now, or refused with its faults."""
        now = self._clock.now()
        if request.job:
            job = self._state().jobs.get(request.job)
            if job is None:
                raise NotFound(f"there is no job {request.job!r}", remedy="`llmos get jobs` lists them.", param="job")
            return explain(self._state(), self._brain(), job, now)
        if not is_token(request.tenant):
            raise Rejected(f"{request.tenant[:64]!r} can't be a tenant", param="tenant")
        spec, faults = check_spec(msgspec.json.encode(request.spec), tenant=request.tenant, now=now)
        if spec is None:
            raise Rejected("; ".join(map(str, faults[:MOST_TOLD])), remedy="Correct the spec.", param=faults[0].path)
        return foresee(self._state(), self._brain(), spec, now)

    async def on_cordon_requested(self, request: CordonRequested, envelope: Envelope) -> NodeView:
        await self._tell(operating.cordon(self._state(), request), envelope)
        return self._node(request.node)

    async def on_uncordon_requested(self, request: UncordonRequested, envelope: Envelope) -> NodeView:
        await self._tell(operating.uncordon(self._state(), request), envelope)
        return self._node(request.node)

    async def on_queues_requested(self, _request: QueuesRequested, _envelope: Envelope) -> QueueList:
        return view_queues(self._state(), self._clock.now())

    async def on_set_queues_requested(self, request: SetQueuesRequested, envelope: Envelope) -> QueueList:
        await self._tell(operating.set_queues(self._state(), request), envelope)
        return view_queues(self._state(), self._clock.now())

    async def on_reserve_requested(self, request: ReserveRequested, envelope: Envelope) -> ReservationView:
        now = self._clock.now()
        await self._tell(operating.reserve(self._state(), request, now), envelope)
        return view_reservation(self._state().reservations[request.reservation], now)

    async def on_unreserve_requested(self, request: UnreserveRequested, envelope: Envelope) -> ReservationView:
        fact = operating.unreserve(self._state(), request)
        ended = view_reservation(self._state().reservations[request.reservation], self._clock.now())
        await self._tell(fact, envelope)
        return ended

    async def on_reservations_requested(self, _request: ReservationsRequested, _envelope: Envelope) -> ReservationList:
        return ReservationList(view_reservations(self._state(), self._clock.now()))

    async def on_shift_requested(self, request: ShiftRequested, envelope: Envelope) -> DeploymentChanged:
        await self._tell(shifting.shift(self._state(), request), envelope)
        return self._state().deployments[request.deployment].change

    async def on_rollback_requested(self, request: RollbackRequested, envelope: Envelope) -> DeploymentChanged:
        await self._tell(shifting.rollback(self._state(), request), envelope)
        return self._state().deployments[request.deployment].change

    async def _tell(self, fact: Struct | None, envelope: Envelope) -> None:
        """A request that is delivered again stores nothing new: the fact's id is the request's."""
        if fact is not None:
            await self._say(Emit(fact, f"{envelope.id}.done", envelope.id, envelope.traceparent))

    def _node(self, name: str) -> NodeView:
        return next(view for view in view_nodes(self._state(), self._clock.now()) if view.node == name)
