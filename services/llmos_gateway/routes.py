"""The routes: each is one question to the stack, and its answer as JSON."""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.exceptions import HTTPException
from litestar.handlers import BaseRouteHandler
from litestar.openapi.spec import OpenAPIMediaType, Operation, Reference, RequestBody
from litestar.params import FromPath, FromQuery, HeaderParameter, JSONBody, QueryParameter
from litestar.response import Stream
from msgspec import Meta, Struct, field

from llmos.client import Client
from llmos.contracts.inference import InferenceAnswered
from llmos.contracts.jobs import ENDED, Explanation, JobList, JobRejected, JobView
from llmos.contracts.models import ModelRecord
from llmos.errors import Busy, NotFound, Rejected
from llmos.ids import is_token, new_id
from llmos_gateway.config import GatewayConfig
from llmos_gateway.problems import ProblemDetails, described, problem
from llmos_gateway.sse import find_place, stream_events

MAX_INPUTS = 256


class Gateway(NamedTuple):
    """What every route has in hand; `stopping` is set when streams have to end."""

    client: Client
    config: GatewayConfig
    stopping: asyncio.Event


Hand = NamedDependency[Gateway]


class Health(Struct):
    """The process answers (`healthz`), or the stack does (`readyz`)."""

    status: Literal["ok"] = "ok"


class Submitted(Struct):
    """A job was taken. `state` is `queued`, or `submitted` when the scheduler has not yet said anything of it."""

    job: str
    state: Literal["queued", "submitted"]
    events: str


class ModelList(Struct):
    """Every registered model."""

    models: list[ModelRecord] = field(default_factory=list)


class InferRequest(Struct, forbid_unknown_fields=True):
    """Texts to classify. `top` limits the labels listed for each (0: all); `timeout` in seconds."""

    inputs: Annotated[list[str], Meta(min_length=1, max_length=MAX_INPUTS)]
    top: Annotated[int, Meta(ge=0)] = 0
    timeout: Annotated[float, Meta(gt=0, le=60)] | None = None


@dataclass
class SubmitOperation(Operation):
    """A submission's body is read raw, so that all its faults can be told; the description still shows the spec."""

    def __post_init__(self) -> None:
        schema = Reference(ref="#/components/schemas/JobSpec")
        self.request_body = RequestBody(content={"application/json": OpenAPIMediaType(schema=schema)}, required=True)


def only_json(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """A web page can post a form to any host without asking, but not JSON: only JSON is read."""
    if connection.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(status_code=415, detail="the body must be application/json")


@get("/healthz", sync_to_thread=False)
def healthz() -> Health:
    """The process is alive."""
    return Health()


@get("/readyz", responses=described(503))
async def readyz(gateway: Hand) -> Health:
    """The bus answers."""
    try:
        async with asyncio.timeout(2):
            await gateway.client.bus.last_sequence("EVENTS")
    except TimeoutError:
        raise Busy("the bus does not answer", remedy="Retry later.") from None
    return Health()


@post(
    "/v1/jobs",
    guards=[only_json],
    operation_class=SubmitOperation,
    responses=described(400, 413, 415, 422, 503),
)
async def submit_job(
    request: Request[Any, Any, Any],
    gateway: Hand,
    idempotency_key: Annotated[str | None, HeaderParameter(name="Idempotency-Key")] = None,
) -> Response[Submitted] | Response[ProblemDetails]:
    """Publish a job. `Idempotency-Key` is the job's id: the first spec under it is the job, repeating changes nothing.

    201 once the scheduler has admitted it, 422 with every fault when it rejects it, 202 when it has said nothing yet.
    """
    spec = decode_object(await request.body())
    job = idempotency_key if idempotency_key is not None else new_id("job")
    if not is_token(job):
        raise Rejected(
            f"{job!r} can't be a job's id", remedy="Use 1 to 128 letters, digits, '_' and '-'.", param="Idempotency-Key"
        )
    await gateway.client.submit(spec, job)
    first = await gateway.client.verdict(job, gateway.client.tenant_of(spec), gateway.config.admit_within_s)
    if isinstance(first, JobRejected):
        detail = f"the job is rejected: {len(first.faults)} fault{'s' * (len(first.faults) != 1)}"
        return problem(422, "rejected", detail, remedy="Correct every fault and submit again.", faults=first.faults)
    taken = Submitted(job, "queued" if first else "submitted", f"/v1/jobs/{job}/events")
    return Response(taken, status_code=201 if first else 202, headers={"Location": f"/v1/jobs/{job}"})


def decode_object(body: bytes) -> dict[str, Any]:
    """The body as a JSON object. Raises `HTTPException` (400), `Rejected`."""
    try:
        spec = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HTTPException(status_code=400, detail=f"the body is no JSON: {error}") from error
    if not isinstance(spec, dict):
        raise Rejected("a job spec is an object", remedy='Send {"name": …, "model": …, "data": …}.')
    return spec


@get("/v1/jobs", responses=described(400, 503))
async def list_jobs(
    gateway: Hand,
    tenant: FromQuery[str | None] = None,
    in_state: Annotated[str | None, QueryParameter(name="state")] = None,
    limit: Annotated[int, QueryParameter(ge=1, le=1000)] = 100,
) -> JobList:
    """Jobs, newest first, without their tasks."""
    return JobList(await gateway.client.jobs(tenant=tenant, state=in_state, limit=limit))


@get("/v1/jobs/{job:str}", responses=described(404, 503))
async def show_job(gateway: Hand, job: FromPath[str]) -> JobView:
    """One job as it stands, with its tasks."""
    return await gateway.client.job(job)


@delete("/v1/jobs/{job:str}", status_code=200, responses=described(404, 503))
async def cancel_job(gateway: Hand, job: FromPath[str]) -> Response[JobView]:
    """Cancel a job: 202 while its work is being stopped, 200 when it has ended already."""
    view = await gateway.client.cancel(job, requested_by="gateway")
    return Response(view, status_code=200 if view.state in ENDED else 202)


@get("/v1/jobs/{job:str}/explain", responses=described(404, 503))
async def explain_job(gateway: Hand, job: FromPath[str]) -> Explanation:
    """Why a job waits, or what it does."""
    return await gateway.client.explain(job)


@get("/v1/jobs/{job:str}/events", media_type="text/event-stream", responses=described(404, 422, 503))
async def follow_events(
    gateway: Hand,
    job: FromPath[str],
    last_event_id: Annotated[str | None, HeaderParameter(name="Last-Event-ID")] = None,
) -> Stream | Response[None]:
    """Every fact of a job as server-sent events, until it has ended.

    `Last-Event-ID` resumes after that event; 204 says that nothing follows it, so that a browser stops reconnecting.
    """
    if not is_token(job):
        raise NotFound(f"there is no job {job!r}", param="job")
    place = await find_place(gateway.client.bus, job, last_event_id or "")
    if place.over:
        return Response(None, status_code=204)
    events = stream_events(gateway.client.bus, job, place, gateway.stopping, gateway.config.keep_alive_s)
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Stream(events, media_type="text/event-stream", headers=headers)


@get("/v1/models", responses=described(503))
async def list_models(gateway: Hand) -> ModelList:
    """Every registered model with its versions, oldest first."""
    return ModelList(await gateway.client.models())


@get("/v1/models/{name:str}", responses=described(404, 503))
async def show_model(gateway: Hand, name: FromPath[str]) -> ModelRecord:
    """One registered model."""
    return await gateway.client.model(name)


@post(
    "/v1/models/{name:str}/infer",
    status_code=200,
    guards=[only_json],
    responses=described(400, 404, 413, 415, 422, 503),
)
async def infer(gateway: Hand, name: FromPath[str], data: JSONBody[InferRequest]) -> InferenceAnswered:
    """Classify texts with what is deployed under `name`: one output per input, in order."""
    return await gateway.client.infer(
        name, data.inputs, top=data.top, timeout=data.timeout or gateway.config.infer_within_s
    )


ROUTES = [
    healthz,
    readyz,
    submit_job,
    list_jobs,
    show_job,
    cancel_job,
    explain_job,
    follow_events,
    list_models,
    show_model,
    infer,
]
