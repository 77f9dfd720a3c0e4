"""Lines on stderr, in both formats."""

import json
import logging

import pytest

from taskmix_server.telemetry.logs import FIELDS, FORMATS, log_request
from tests.unit.server.test_metrics import finished


@pytest.fixture
def line(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    """The line of a request."""
    caplog.set_level(logging.INFO, "taskmix_server")
    record = finished()
    record.status, record.trace_id = "OK", "ab" * 16
    log_request(record)
    (logged,) = caplog.records
    logged.vllm_process_name = "MainProcess"  # as vLLM marks it
    return logged


def test_an_object_a_line(line: logging.LogRecord) -> None:
    text = FORMATS["json"]().format(line)
    assert "\n" not in text
    seen = json.loads(text)
    assert seen.pop("time")
    assert seen.pop("resolve_s") is not None
    assert seen == {
        "level": "INFO",
        "logger": "taskmix_server.telemetry.logs",
        "message": "request",
        "request_id": "id",
        "trace_id": "ab" * 16,
        "edge": "grpc",
        "tenant": "t",
        "mix": "prod",
        "digest": "digest",
        "outcome": "ok",
        "status": "OK",
        "prompt_tokens": 5,
        "cached_tokens": 4,
        "output_tokens": 3,
        "ttft_s": 0.5,
        "duration_s": 1.0,
    }


def test_a_line_for_people(line: logging.LogRecord) -> None:
    text = FORMATS["text"]().format(line)
    assert text.startswith(
        "INFO taskmix_server.telemetry.logs: request request_id=id trace_id=abab"
    )
    assert " outcome=ok " in text
    assert text.endswith(" duration_s=1.0")


def test_a_refusal_says_why(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "taskmix_server")
    log_request(finished("NotFoundError"))
    seen = json.loads(FORMATS["json"]().format(caplog.records[0]))
    assert (seen["outcome"], seen["error"]) == ("refused", "NotFoundError")


@pytest.mark.parametrize("log_format", FORMATS)
def test_other_lines_and_tracebacks(log_format: str) -> None:
    try:
        raise KeyError("lost")
    except KeyError as error:
        info = (KeyError, error, error.__traceback__)
    plain = logging.LogRecord("a", logging.ERROR, "f", 1, 'with "quotes" %s', ("x\ny",), info)
    assert not hasattr(plain, FIELDS)
    text = FORMATS[log_format]().format(plain)
    assert "KeyError" in text
    if log_format == "json":
        assert json.loads(text)["message"] == 'with "quotes" x\ny'
