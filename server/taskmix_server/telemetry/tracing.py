"""Requests as OpenTelemetry spans, made when a request has ended from the times it left behind.

Needs `taskmix[tracing]`; imported only where an endpoint was given.
"""

import threading
from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from taskmix_server.telemetry.outcomes import FAILED, outcome_of
from taskmix_server.telemetry.requests import EngineRun, RequestRecord

SERVICE = "taskmix"
EXPORT_S = 5.0  # for one try to post a batch
CLOSE_S = 3.0  # for what is left at the end; a collector that is down holds up no restart
_PROPAGATOR = TraceContextTextMapPropagator()


class RequestTracer:
    """Turns a record into a span `generate` with `resolve`, `wait`, `prefill` and `decode` in it.

    Spans are exported in batches by a thread, and dropped if the exporter cannot keep up.
    The caller's W3C `traceparent` names the parent and whether the trace is sampled.
    """

    def __init__(self, exporter: SpanExporter, close_s: float = CLOSE_S) -> None:
        self._exporter = exporter
        self._close_s = close_s
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": SERVICE}), shutdown_on_exit=False
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("taskmix_server")

    @classmethod
    def to(cls, endpoint: str) -> "RequestTracer":
        """Export to an OTLP endpoint over HTTP."""
        return cls(OTLPSpanExporter(endpoint, timeout=EXPORT_S))

    def report(self, record: RequestRecord) -> None:
        """A `Report`: exports the spans and gives the record its trace id."""
        assert record.ended_s is not None, "reported before it ended"
        parent = _PROPAGATOR.extract(record.carrier)
        span = self._tracer.start_span(
            "generate",
            parent,
            SpanKind.SERVER,
            _attributes(record),
            start_time=_wall_ns(record, record.started_s),
        )
        record.trace_id = f"{span.get_span_context().trace_id:032x}"
        _set_status(span, record)
        inside = set_span_in_context(span)
        if record.resolved_s is not None:
            self._add(record, "resolve", inside, (record.started_s, record.resolved_s))
        for run in record.runs:
            self._add_phases(record, inside, run)
        span.end(_wall_ns(record, record.ended_s))

    def close(self) -> None:
        """Export what is left, or give up on it after `close_s`."""
        giving_up = threading.Timer(self._close_s, self._exporter.shutdown)
        giving_up.daemon = True
        giving_up.start()
        self._provider.shutdown()
        giving_up.cancel()

    def _add_phases(self, record: RequestRecord, inside: Context, run: EngineRun) -> None:
        phases = run.phases
        if phases is None:
            return
        self._add(record, "wait", inside, (phases.queued_s, phases.scheduled_s))
        self._add(record, "prefill", inside, (phases.scheduled_s, phases.first_token_s))
        self._add(record, "decode", inside, (phases.first_token_s, phases.last_token_s))

    def _add(
        self, record: RequestRecord, name: str, inside: Context, times_s: tuple[float, float]
    ) -> None:
        start_ns, end_ns = (_wall_ns(record, moment_s) for moment_s in times_s)
        self._tracer.start_span(name, inside, start_time=start_ns).end(end_ns)


def _attributes(record: RequestRecord) -> Mapping[str, str | int]:
    """OpenTelemetry's own names where it has them."""
    attributes: dict[str, str | int] = {
        "taskmix.request_id": record.request_id,
        "taskmix.edge": record.edge,
        "taskmix.tenant": record.tenant,
        "taskmix.mix": record.mix,
        "taskmix.mix_digest": record.digest,
        "taskmix.arm": record.arm,
        "taskmix.outcome": outcome_of(record.error)[0],
        "error.type": record.error,
        "taskmix.status": record.status,
        "gen_ai.usage.input_tokens": record.num_prompt_tokens,
        "gen_ai.usage.output_tokens": record.num_output_tokens,
    }
    return {name: value for name, value in attributes.items() if value != ""}


def _set_status(span: Span, record: RequestRecord) -> None:
    """A refusal and a caller who left are no errors of the server."""
    outcome, reason = outcome_of(record.error)
    if outcome == FAILED:
        span.set_status(Status(StatusCode.ERROR, reason))


def _wall_ns(record: RequestRecord, moment_s: float) -> int:
    """A moment of the monotonic clock on the wall clock, as the request's start relates them."""
    return record.started_at_ns + round((moment_s - record.started_s) * 1e9)
