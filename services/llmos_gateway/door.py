"""The door of the gateway: every request passes it, and is traced, timed, and refused when it is for another host."""

import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import msgspec

from llmos.telemetry import Telemetry, traceparent
from llmos_gateway.problems import MEDIA_TYPE, ProblemDetails

# ASGI, as its specification has it.
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def allowed_names(http_host: str, http_hosts: Sequence[str]) -> frozenset[str]:
    """The host names that requests may come for; empty means any."""
    if http_hosts:
        return frozenset(name.lower() for name in http_hosts)
    return frozenset(LOOPBACK_NAMES) if http_host in LOOPBACK_NAMES else frozenset()


def host_name(header: str) -> str:
    """The name in a `Host` header, without its port: `[::1]:80` is `::1`."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


class Door:
    """ASGI: continues the caller's trace (`traceparent` in and out) and records the time of every request."""

    def __init__(self, app: App, telemetry: Telemetry, names: frozenset[str]) -> None:
        self._app = app
        self._telemetry = telemetry
        self._names = names

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        status = 500

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                extra = [(b"traceparent", traceparent().encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message["headers"], *extra]
            await send(message)

        method, started = scope["method"], time.monotonic()
        with self._telemetry.span(f"HTTP {method}", parent=headers.get("traceparent", ""), kind="server") as span:
            if self._names and host_name(headers.get("host", "")) not in self._names:
                await _refuse(answer)
            else:
                await self._app(scope, receive, answer)
            route = str(scope.get("path_template") or "none")
            span.update_name(f"{method} {route}")
            span.set_attributes(
                {"http.request.method": method, "http.route": route, "http.response.status_code": status}
            )
        labels: dict[str, str] = {"method": method, "route": route, "status": str(status)}
        self._telemetry.record("llmos.http.duration", time.monotonic() - started, **labels)


async def _refuse(send: Send) -> None:
    details = ProblemDetails(
        "urn:llmos:problem:wrong_host", "Misdirected Request", 421, "wrong_host",
        "this gateway does not answer for that host name", remedy="Set LLMOS_HTTP_HOSTS to the names it is reached by.",
    )  # fmt: skip
    body = msgspec.json.encode(details)
    head = [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 421, "headers": head})
    await send({"type": "http.response.body", "body": body, "more_body": False})
