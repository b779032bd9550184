"""The routes of whoever runs the cluster: nodes, queues, reservations, and what would become of a job."""

from typing import Any

from litestar import Request, Response, delete, get, post, put
from litestar.params import FromPath, JSONBody
from msgspec import Struct, field

from llmos.contracts.jobs import Explanation
from llmos.contracts.nodes import NodeList, NodeView
from llmos.contracts.queues import QueueList, QueueSettings, ReservationList, ReservationView
from llmos.queuespecs import check_queues
from llmos_gateway.problems import ProblemDetails, described, problem
from llmos_gateway.routes import Hand, SubmitOperation, decode_object, only_json

BY = "gateway"


class Cordon(Struct, forbid_unknown_fields=True):
    """`drain` clears the node as well."""

    drain: bool = False
    reason: str = ""


class Queues(Struct, forbid_unknown_fields=True):
    """The settings of all queues."""

    queues: list[QueueSettings] = field(default_factory=list)


class Reservation(Struct, forbid_unknown_fields=True):
    """Nodes for a queue or a tenant, from `start` to `end` (Unix seconds; none: from now on, until it is ended)."""

    nodes: list[str]
    queue: str = ""
    tenant: str = ""
    start: float = 0.0
    end: float | None = None


@get("/v1/nodes", responses=described(503))
async def list_nodes(gateway: Hand) -> NodeList:
    """The nodes, as the scheduler sees them."""
    return NodeList(await gateway.client.nodes())


@post("/v1/nodes/{node:str}/cordon", status_code=200, guards=[only_json], responses=described(400, 404, 415, 503))
async def cordon_node(gateway: Hand, node: FromPath[str], data: JSONBody[Cordon]) -> NodeView:
    """Let nothing new start on a node; `drain` clears it: it is empty when the view has neither tasks nor replicas."""
    return await gateway.client.cordon(node, drain=data.drain, reason=data.reason, requested_by=BY)


@delete("/v1/nodes/{node:str}/cordon", status_code=200, responses=described(404, 503))
async def uncordon_node(gateway: Hand, node: FromPath[str]) -> NodeView:
    """Let a node take work again."""
    return await gateway.client.uncordon(node, requested_by=BY)


@get("/v1/queues", responses=described(503))
async def list_queues(gateway: Hand) -> QueueList:
    """Every queue: its settings, what it holds, who waits."""
    return QueueList(await gateway.client.queues())


@put("/v1/queues", guards=[only_json], responses=described(400, 415, 422, 503))
async def set_queues(gateway: Hand, request: Request[Any, Any, Any]) -> QueueList | Response[ProblemDetails]:
    """Set all queues (`{"queues": […]}`); one that is not listed goes back to its defaults. 422 lists every fault."""
    queues, faults = check_queues(decode_object(await request.body()).get("queues"))
    if faults:
        return problem(422, "rejected", "the queues are wrong", remedy="Correct every fault.", faults=faults)
    return QueueList(await gateway.client.set_queues(queues, requested_by=BY))


@get("/v1/reservations", responses=described(503))
async def list_reservations(gateway: Hand) -> ReservationList:
    """The reservations that have not ended, by start."""
    return ReservationList(await gateway.client.reservations())


@put("/v1/reservations/{name:str}", guards=[only_json], responses=described(400, 404, 415, 422, 503))
async def reserve(gateway: Hand, name: FromPath[str], data: JSONBody[Reservation]) -> ReservationView:
    """Keep nodes for a queue or a tenant; a known name is changed."""
    return await gateway.client.reserve(
        name, data.nodes, queue=data.queue, tenant=data.tenant, start=data.start, end=data.end, requested_by=BY
    )


@delete("/v1/reservations/{name:str}", status_code=200, responses=described(404, 503))
async def unreserve(gateway: Hand, name: FromPath[str]) -> ReservationView:
    """End a reservation."""
    return await gateway.client.unreserve(name, requested_by=BY)


@post(
    "/v1/plan",
    status_code=200,
    guards=[only_json],
    operation_class=SubmitOperation,
    responses=described(400, 415, 422, 503),
)
async def plan_job(gateway: Hand, request: Request[Any, Any, Any]) -> Explanation:
    """What would become of a job if it were submitted now: where it would start, whom it would preempt, or what it
    would wait for. Nothing is submitted."""
    spec = decode_object(await request.body())
    return await gateway.client.plan(spec, tenant=gateway.client.tenant_of(spec))


CLUSTER_ROUTES = [
    list_nodes,
    cordon_node,
    uncordon_node,
    list_queues,
    set_queues,
    list_reservations,
    reserve,
    unreserve,
    plan_job,
]
