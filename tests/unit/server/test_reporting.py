"""Where records of requests go."""

import logging
import sys

import pytest
from prometheus_client import CollectorRegistry

from taskmix_server.errors import FailedPreconditionError
from taskmix_server.telemetry.config import TelemetryConfig
from taskmix_server.telemetry.metrics import Metrics
from taskmix_server.telemetry.reporting import Reporter
from tests.unit.server.test_metrics import finished, samples


def test_metrics_and_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "taskmix_server")
    registry = CollectorRegistry()
    reporter = Reporter(TelemetryConfig(), Metrics(registry))
    reporter.report(finished())
    reporter.close()
    assert samples(registry, "taskmix_output_tokens_total") == {("t", "prod"): 3.0}
    (line,) = caplog.records
    assert "trace_id" not in line.__dict__["fields"]


def test_the_line_has_the_id_of_the_trace(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "taskmix_server")
    config = TelemetryConfig(otlp_endpoint="http://127.0.0.1:9/v1/traces")
    reporter = Reporter(config, Metrics(CollectorRegistry()))
    record = finished()
    record.carrier = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-00"}  # not sampled: not posted
    reporter.report(record)
    reporter.close()
    assert caplog.records[0].__dict__["fields"]["trace_id"] == "ab" * 16


def test_tracing_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "taskmix_server.telemetry.tracing", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    config = TelemetryConfig(otlp_endpoint="http://127.0.0.1:9/v1/traces")
    with pytest.raises(FailedPreconditionError, match=r"pip install 'taskmix\[tracing\]'"):
        Reporter(config, Metrics(CollectorRegistry()))
