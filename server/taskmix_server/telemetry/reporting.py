"""Where the record of a request goes when it has ended: metrics, traces, then the log."""

from collections.abc import Callable

from taskmix_server.errors import FailedPreconditionError
from taskmix_server.telemetry.config import TelemetryConfig
from taskmix_server.telemetry.logs import log_request
from taskmix_server.telemetry.metrics import Metrics
from taskmix_server.telemetry.requests import Report, RequestRecord


class Reporter:
    """Made before the engine is started, so that a missing extra is told at once."""

    def __init__(self, config: TelemetryConfig, metrics: Metrics) -> None:
        self.metrics = metrics
        trace, self._close = _tracing(config.otlp_endpoint)
        self._reports = (self.metrics.record_request, trace, log_request)

    def report(self, record: RequestRecord) -> None:
        """A `Report`; the log's line has the id of the trace."""
        for report in self._reports:
            report(record)

    def close(self) -> None:
        """Export the spans that are left; waits for the collector."""
        self._close()


def _tracing(endpoint: str | None) -> tuple[Report, Callable[[], None]]:
    """What traces a request, and what ends it."""
    if endpoint is None:
        return lambda _: None, lambda: None
    try:
        from taskmix_server.telemetry.tracing import RequestTracer
    except ImportError as error:
        raise FailedPreconditionError(
            f"--otlp-endpoint needs OpenTelemetry ({error}); run: pip install 'taskmix[tracing]'"
        ) from error
    tracer = RequestTracer.to(endpoint)
    return tracer.report, tracer.close
