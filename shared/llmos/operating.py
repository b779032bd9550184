"""What an operator asks of a cluster: which nodes take work, how queues divide it, what is reserved, what would be."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec
from msgspec import Struct

from llmos.bus import Bus
from llmos.contracts.jobs import Explanation, JobSpec, PlanRequested
from llmos.contracts.nodes import CordonRequested, NodeList, NodesRequested, NodeView, UncordonRequested
from llmos.contracts.queues import (
    QueueList,
    QueueSettings,
    QueuesRequested,
    QueueView,
    ReservationList,
    ReservationsRequested,
    ReservationView,
    ReserveRequested,
    SetQueuesRequested,
    UnreserveRequested,
)
from llmos.errors import NotFound
from llmos.ids import is_token


class Operating:
    """The part of `Client` that is about the cluster; it raises as the client does."""

    def __init__(self, bus: Bus) -> None:
        self.bus = bus

    async def nodes(self) -> list[NodeView]:
        """The nodes, as the scheduler sees them."""
        answer: NodeList = await self._ask("nodes", NodesRequested())
        return answer.nodes

    async def cordon(self, node: str, *, drain: bool = False, reason: str = "", requested_by: str = "") -> NodeView:
        """Let nothing new start on a node; with `drain`, what can be preempted leaves it, and replicas move away.

        The rest runs to its end: a node is empty when its view has neither tasks nor replicas.
        """
        request = CordonRequested(one(node, "node"), drain, reason, requested_by)
        return cast(NodeView, await self._ask("cordon", request))

    async def uncordon(self, node: str, *, requested_by: str = "") -> NodeView:
        """Let a node take work again."""
        return cast(NodeView, await self._ask("uncordon", UncordonRequested(one(node, "node"), requested_by)))

    async def queues(self) -> list[QueueView]:
        """Every queue with its settings and what it holds, by name."""
        answer: QueueList = await self._ask("queues", QueuesRequested())
        return answer.queues

    async def set_queues(self, queues: Iterable[QueueSettings], *, requested_by: str = "") -> list[QueueView]:
        """Set every queue at once: what is not listed goes back to its defaults. Raises `Rejected` for what can't be
        kept, such as quotas above what the cluster has."""
        answer: QueueList = await self._ask("set_queues", SetQueuesRequested(list(queues), requested_by))
        return answer.queues

    async def reservations(self) -> list[ReservationView]:
        """The reservations that have not ended, by start."""
        answer: ReservationList = await self._ask("reservations", ReservationsRequested())
        return answer.reservations

    async def reserve(
        self,
        name: str,
        nodes: Sequence[str],
        *,
        queue: str = "",
        tenant: str = "",
        start: float = 0.0,
        end: float | None = None,
        requested_by: str = "",
    ) -> ReservationView:
        """Keep nodes for the work of a queue (and those below it) or of a tenant, from `start` to `end` (Unix seconds;
        0 and `None`: from now on, until it is ended). A known name is changed."""
        request = ReserveRequested(one(name, "reservation"), list(nodes), queue, tenant, start, end, requested_by)
        return cast(ReservationView, await self._ask("reserve", request))

    async def unreserve(self, name: str, *, requested_by: str = "") -> ReservationView:
        """End a reservation."""
        request = UnreserveRequested(one(name, "reservation"), requested_by)
        return cast(ReservationView, await self._ask("unreserve", request))

    async def plan(
        self, spec: Mapping[str, Any] | JobSpec | None = None, *, job: str = "", tenant: str = "default"
    ) -> Explanation:
        """What would become of a job with this spec, were it submitted now; or of the known `job`. Nothing is done.

        Raises `Rejected` for a spec that would be rejected.
        """
        raw = msgspec.to_builtins(spec) if isinstance(spec, JobSpec) else dict(spec or {})
        return cast(Explanation, await self._ask("plan", PlanRequested(tenant, raw, job and one(job, "job"))))

    async def _ask(self, verb: str, request: Struct) -> Any:
        return await self.bus.call("scheduler", verb, request)


def one(name: str, what: str) -> str:
    """`name` if it can name something. What can't be a subject token can't exist. Raises `NotFound`."""
    if not is_token(name):
        raise NotFound(f"there is no {what} {name!r}", remedy="Names are letters, digits, '_' and '-'.", param=what)
    return name
