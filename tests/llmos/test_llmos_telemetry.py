"""Telemetry on a real OTLP endpoint: one connected trace, metrics from one table, nothing without a collector."""

import socket
import time

import pytest

from llmos.telemetry import METRICS, Telemetry, trace_id, traceparent
from llmos.testing.otlp import otlp_receiver


def test_spans_of_two_services_make_one_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    with otlp_receiver() as receiver:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        first, second = Telemetry("scheduler", "n1"), Telemetry("trainer", "n1")
        with first.span("job.admit", job="j1"):
            carried = traceparent()
        with second.span("task.run", parent=carried):
            assert trace_id(traceparent()) == trace_id(carried)
        second.count("llmos.jobs.ended", state="deployed")
        second.record("llmos.task.duration", 1.5, kind="train", outcome="succeeded")
        first.close()
        second.close()
    spans = {span.name: (service, span) for service, span in receiver.trace(trace_id(carried))}
    assert {name: service for name, (service, _) in spans.items()} == {
        "job.admit": "llmos-scheduler",
        "task.run": "llmos-trainer",
    }
    assert spans["task.run"][1].parent_span_id == spans["job.admit"][1].span_id
    assert receiver.metrics["llmos-trainer"] == {"llmos.jobs.ended", "llmos.task.duration"}


def test_trace_ids_exist_without_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    telemetry = Telemetry("scheduler")
    assert traceparent() == ""
    with telemetry.span("job.admit", parent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"):
        assert trace_id(traceparent()) == "0af7651916cd43dd8448eb211c80319c"
    telemetry.close()


def test_a_metric_outside_the_table_is_an_error() -> None:
    with pytest.raises(KeyError):
        Telemetry("scheduler").count("llmos.unheard_of")
    assert all(unit and text for unit, text in METRICS.values())


@pytest.mark.parametrize("bad", ["", "00-short-x-01", "no dashes"])
def test_what_is_no_traceparent_names_no_trace(bad: str) -> None:
    assert trace_id(bad) == ""


def test_a_collector_that_does_not_answer_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        telemetry = Telemetry("audit", "n1")
        with telemetry.span("work"):
            telemetry.count("llmos.audit.entries")
        began = time.monotonic()
        telemetry.close()
        assert time.monotonic() - began < 5, "by itself it takes 20 s"
