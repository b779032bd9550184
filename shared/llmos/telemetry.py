"""Traces, metrics and logs: OpenTelemetry behind a handful of verbs.

Nothing is exported unless `OTEL_EXPORTER_OTLP_ENDPOINT` is set; then spans and metrics go there over OTLP/HTTP
(`OTEL_*` variables are honoured). Trace ids exist either way, so that a job's history can always be joined.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.metrics import Counter, Histogram, Meter, NoOpMeter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

CLOSE_WITHIN_S = 2.0
_PROPAGATOR = TraceContextTextMapPropagator()

# Every instrument: name → unit and description. Seconds, bytes and counts only.
METRICS: dict[str, tuple[str, str]] = {
    "llmos.jobs.submitted": ("{job}", "Jobs taken from the bus, by outcome (admitted, rejected)"),
    "llmos.jobs.ended": ("{job}", "Jobs ended, by state"),
    "llmos.job.duration": ("s", "From submission to the end of a job, by state"),
    "llmos.task.queue_wait": ("s", "From the moment a task could run to its placement, by kind"),
    "llmos.task.preempted": ("{task}", "Leases asked back, by kind and for whom (job, deployment, nobody: a drain)"),
    "llmos.task.duration": ("s", "From placement to the end of a task, by kind and outcome"),
    "llmos.train.steps": ("{step}", "Optimizer steps taken"),
    "llmos.inference.requests": ("{request}", "Requests answered, by model and outcome"),
    "llmos.inference.queue_wait": ("s", "From publish to the start of the batch, by model"),
    "llmos.inference.duration": ("s", "Compute time of a batch, by model"),
    "llmos.inference.batch_size": ("{input}", "Inputs in a batch, by model"),
    "llmos.http.duration": ("s", "HTTP requests, by route and status"),
    "llmos.audit.entries": ("{entry}", "Entries appended to the log"),
    "llmos.keys.released": ("{key}", "Keys handed out, by outcome"),
    "llmos.bus.dead": ("{message}", "Messages that died, by stream"),
}
_HISTOGRAM_UNITS = {"s", "{input}"}


class Telemetry:
    """What a service says about itself; one object a process."""

    def __init__(self, service: str, node: str = "") -> None:
        resource = Resource.create({"service.name": f"llmos-{service}", "service.instance.id": f"{service}/{node}"})
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)  # `close` does it, within bounds
        self._meter: Meter = NoOpMeter("llmos")
        self._shutdown = [self._traces.shutdown]
        if os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
            self._export(resource)
        self._tracer = self._traces.get_tracer("llmos")
        self._counters: dict[str, Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def _export(self, resource: Resource) -> None:
        # Imported here: the exporters cost 0.1 s and 15 MB that a process without a collector need not pay.
        from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._traces.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(), schedule_delay_millis=1000))
        readers = [PeriodicExportingMetricReader(OTLPMetricExporter())]
        metrics = MeterProvider(resource=resource, metric_readers=readers, shutdown_on_exit=False)
        self._meter = metrics.get_meter("llmos")
        self._shutdown.append(metrics.shutdown)

    @contextmanager
    def span(self, name: str, *, parent: str = "", kind: str = "internal", **attributes: Any) -> Iterator[Span]:
        """Run a block as a span. `parent` is a traceparent; empty means the current span. Errors are recorded."""
        context = _PROPAGATOR.extract({"traceparent": parent}) if parent else None
        with self._tracer.start_as_current_span(
            name,
            context=context,
            kind=SpanKind[kind.upper()],
            attributes={f"llmos.{k}": v for k, v in attributes.items()},
        ) as span:
            yield span

    def count(self, name: str, value: int = 1, **attributes: str) -> None:
        """Add to a counter of `METRICS`. Raises `KeyError` for a name that the table lacks."""
        unit, description = METRICS[name]
        counter = self._counters.get(name)
        if counter is None:
            counter = self._counters[name] = self._meter.create_counter(name, unit, description)
        counter.add(value, attributes)

    def record(self, name: str, value: float, **attributes: str) -> None:
        """Record a value in a histogram of `METRICS`. Raises `KeyError` for a name that the table lacks."""
        unit, description = METRICS[name]
        histogram = self._histograms.get(name)
        if histogram is None:
            histogram = self._histograms[name] = self._meter.create_histogram(name, unit, description)
        histogram.record(value, attributes)

    def close(self) -> None:
        """Send what is left; takes at most two seconds, also when the collector does not answer."""
        # By themselves they wait and retry for 20 s. A daemon thread that still does so holds up no process's end.
        threads = [threading.Thread(target=shutdown, name="telemetry", daemon=True) for shutdown in self._shutdown]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + CLOSE_WITHIN_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))


def traceparent() -> str:
    """W3C `traceparent` of the current span; empty outside one."""
    carrier: dict[str, str] = {}
    _PROPAGATOR.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id(parent: str) -> str:
    """The 32 hex digits of the trace that a traceparent names; empty if it names none."""
    parts = parent.split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""


def fail(span: Span, error: BaseException) -> None:
    """Mark a span as failed without raising."""
    span.set_status(StatusCode.ERROR, str(error))
    span.record_exception(error)


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace"] = f"{context.trace_id:032x}"
    return event


def configure_logging(level: str = "info", style: str = "console") -> None:
    """Log to stderr: `console` for people, `json` for collectors."""
    renderer: Any = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback, pad_event_to=30
        )
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            _add_trace,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([structlog.processors.format_exc_info] if style == "json" else []),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
