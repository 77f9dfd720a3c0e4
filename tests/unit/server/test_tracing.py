"""Spans of a request, in memory."""

import threading
from collections.abc import Sequence

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from taskmix_server.telemetry.requests import Phases, RequestRecord
from taskmix_server.telemetry.tracing import RequestTracer
from tests.unit.server.test_metrics import finished

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
START_NS = 1_700_000_000_000_000_000


def traced(flags: str = "01") -> RequestRecord:
    record = finished()
    record.carrier = {"traceparent": f"00-{TRACE}-{PARENT}-{flags}"}
    record.started_at_ns = START_NS
    record.resolved_s = 10.125
    record.arm = "b"
    record.runs[0].phases = Phases(10.25, 10.375, 10.5, 10.875)
    return record


def spans_of(record: RequestRecord) -> dict[str, ReadableSpan]:
    """What is exported of a request, by name."""
    exporter = InMemorySpanExporter()
    tracer = RequestTracer(exporter)
    tracer.report(record)
    tracer.close()
    return {span.name: span for span in exporter.get_finished_spans()}


def offsets_s(span: ReadableSpan) -> tuple[float, float]:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.start_time - START_NS) / 1e9, (span.end_time - START_NS) / 1e9


def test_spans_and_their_times() -> None:
    spans = spans_of(traced())
    assert {name: offsets_s(span) for name, span in spans.items()} == {
        "generate": (0.0, 1.0),
        "resolve": (0.0, 0.125),
        "wait": (0.25, 0.375),
        "prefill": (0.375, 0.5),
        "decode": (0.5, 0.875),
    }
    root = spans.pop("generate")
    assert root.kind is SpanKind.SERVER
    parents = {span.parent.span_id for span in spans.values() if span.parent is not None}
    assert parents == {root.context.span_id}


def test_the_callers_trace_goes_on() -> None:
    record = traced()
    spans = spans_of(record)
    parent = spans["generate"].parent
    assert parent is not None
    assert f"{parent.span_id:016x}" == PARENT
    assert {f"{span.context.trace_id:032x}" for span in spans.values()} == {TRACE}
    assert record.trace_id == TRACE


def test_what_a_caller_did_not_sample() -> None:
    record = traced(flags="00")
    assert spans_of(record) == {}
    assert record.trace_id == TRACE


@pytest.mark.parametrize("header", [{}, {"traceparent": "nonsense"}, {"traceparent": "00-0-0-01"}])
def test_a_trace_of_its_own(header: dict[str, str]) -> None:
    record = traced()
    record.carrier = header
    assert spans_of(record)["generate"].parent is None
    assert record.trace_id != TRACE


def test_attributes() -> None:
    assert dict(spans_of(traced())["generate"].attributes or {}) == {
        "taskmix.request_id": "id",
        "taskmix.edge": "grpc",
        "taskmix.tenant": "t",
        "taskmix.mix": "prod",
        "taskmix.mix_digest": "digest",
        "taskmix.arm": "b",
        "taskmix.outcome": "ok",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 3,
    }


@pytest.mark.parametrize(
    ("error", "status"),
    [
        ("", StatusCode.UNSET),
        ("NotFoundError", StatusCode.UNSET),
        ("CancelledError", StatusCode.UNSET),
        ("InternalError", StatusCode.ERROR),
    ],
)
def test_only_failures_are_errors(error: str, status: StatusCode) -> None:
    record = traced()
    record.error = error
    root = spans_of(record)["generate"]
    assert root.status.status_code is status
    assert (root.attributes or {}).get("error.type") == (error or None)


def test_a_request_that_was_refused_at_once() -> None:
    refused = RequestRecord("id", "http", error="InvalidMixError", ended_s=10.0)
    assert list(spans_of(refused)) == ["generate"]


def test_an_exporter_that_hangs_is_given_up() -> None:
    class Hanging(InMemorySpanExporter):
        """Waits for its end, as OTLP's does between tries."""

        def __init__(self) -> None:
            super().__init__()
            self.ended = threading.Event()

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            self.ended.wait()
            return SpanExportResult.FAILURE

        def shutdown(self) -> None:
            self.ended.set()

    tracer = RequestTracer(Hanging(), close_s=0.05)
    tracer.report(traced())
    tracer.close()
