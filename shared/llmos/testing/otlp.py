"""A real OTLP/HTTP endpoint for tests: receives spans and metrics and keeps them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Receiver:
    """What arrived so far. `spans` are (service name, span); `metrics` maps a service name to the names it reported."""

    def __init__(self) -> None:
        self.url = ""
        self.spans: list[tuple[str, Span]] = []
        self.metrics: dict[str, set[str]] = {}

    def trace(self, trace_id: str) -> list[tuple[str, Span]]:
        """The spans of one trace."""
        return [(service, span) for service, span in self.spans if span.trace_id.hex() == trace_id]

    def take(self, path: str, body: bytes) -> None:
        """Keep one export request."""
        if path.endswith("/traces"):
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                name = _service(resource.resource)
                self.spans += [(name, span) for scope in resource.scope_spans for span in scope.spans]
        elif path.endswith("/metrics"):
            for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                names = {metric.name for scope in group.scope_metrics for metric in scope.metrics}
                self.metrics.setdefault(_service(group.resource), set()).update(names)


def _service(resource: object) -> str:
    attributes = {attribute.key: attribute.value.string_value for attribute in resource.attributes}  # type: ignore[attr-defined]
    return str(attributes.get("service.name", ""))


@contextmanager
def otlp_receiver() -> Iterator[Receiver]:
    """Serve OTLP/HTTP on a free loopback port until the block ends."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            receiver.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
