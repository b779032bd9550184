"""Errors as RFC 9457 problem details. Pure but for the response object: an error in, a response out."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec
from msgspec import Struct, field

from llmos.contracts.jobs import Fault
from llmos.errors import Busy, LlmosError, NotFound, Rejected

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = "1"
_log: Any = structlog.get_logger("gateway")


class ProblemDetails(Struct, omit_defaults=True):
    """RFC 9457. `code` is stable and for programs, `detail` and `remedy` for people, `param` the field at fault;
    `faults` lists everything that is wrong in a job."""

    type: str
    title: str
    status: int
    code: str
    detail: str = ""
    remedy: str = ""
    param: str = ""
    faults: list[Fault] = field(default_factory=list)


def problem(
    status: int, code: str, detail: str, *, remedy: str = "", param: str = "", faults: Sequence[Fault] = ()
) -> Response[ProblemDetails]:
    """The response for a problem."""
    title = HTTPStatus(status).phrase
    details = ProblemDetails(f"urn:llmos:problem:{code}", title, status, code, detail, remedy, param, list(faults))
    headers = {"Retry-After": RETRY_AFTER_S} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return Response(details, status_code=status, media_type=MEDIA_TYPE, headers=headers)


def status_of(error: LlmosError) -> int:
    """The HTTP status that says what happens next. The order matters: `NotFound` is a `Rejected`."""
    kinds: tuple[tuple[type[LlmosError], HTTPStatus], ...] = (
        (NotFound, HTTPStatus.NOT_FOUND),
        (Rejected, HTTPStatus.UNPROCESSABLE_ENTITY),
        (Busy, HTTPStatus.SERVICE_UNAVAILABLE),
    )
    return next((status for kind, status in kinds if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)


def on_llmos_error(_: Request[Any, Any, Any], error: LlmosError) -> Response[ProblemDetails]:
    told = error.problem
    return problem(status_of(error), told.code, told.message, remedy=told.remedy, param=told.param)


def on_http_error(_: Request[Any, Any, Any], error: HTTPException) -> Response[ProblemDetails]:
    """What the framework refuses: no such route or method, a body that is too large or doesn't fit."""
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    faults: list[Fault] = []
    if isinstance(error, ValidationException) and isinstance(error.extra, list):
        faults = [Fault(str(extra.get("key") or "body"), str(extra["message"])) for extra in error.extra]
    detail = "the request does not fit its description" if faults else error.detail
    response = problem(error.status_code, code, detail, faults=faults, param=faults[0].path if faults else "")
    response.headers.update({name: value for name, value in (error.headers or {}).items() if name.lower() == "allow"})
    return response


def on_unexpected(request: Request[Any, Any, Any], error: Exception) -> Response[ProblemDetails]:
    """A fault of ours: logged here, and not told to a stranger."""
    _log.error("a request failed", path=request.url.path, exc_info=error)
    return problem(500, "error", "the gateway could not answer", remedy="Retry; the gateway's log has the reason.")


def described(*statuses: int) -> dict[int, ResponseSpec]:
    """The problem responses of a route, for the OpenAPI description."""
    return {
        status: ResponseSpec(
            ProblemDetails, generate_examples=False, description=HTTPStatus(status).phrase, media_type=MEDIA_TYPE
        )
        for status in statuses
    }
