"""What goes to stderr: one format for every line, and one line per generation request."""

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any

from pythonjsonlogger.core import LogData
from pythonjsonlogger.json import JsonFormatter

from taskmix_server.telemetry.outcomes import outcome_of
from taskmix_server.telemetry.requests import RequestRecord

TEXT = "%(levelname)s %(name)s: %(message)s"
FIELDS = "fields"
"""The attribute of a log record that carries named values, as a dict."""

logger = logging.getLogger(__name__)


class TextFormatter(logging.Formatter):
    """A line for people: the message, then its fields as `name=value`."""

    def __init__(self) -> None:
        super().__init__(TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields: Mapping[str, Any] = getattr(record, FIELDS, {})
        named = (f"{name}={value}" for name, value in fields.items())
        return " ".join([super().formatMessage(record), *named])


class JsonLines(JsonFormatter):
    """An object a line for machines: time, level, logger, message, and the fields beside them."""

    def __init__(self) -> None:
        renamed = {"levelname": "level", "name": "logger"}
        super().__init__(
            "%(levelname)s %(name)s %(message)s", timestamp="time", rename_fields=renamed
        )

    def process_log_record(self, log_data: LogData) -> LogData:
        log_data.pop("vllm_process_name", None)  # vLLM marks every record of the process
        fields = log_data.pop(FIELDS, {})
        return {**log_data, **fields}


FORMATS: Mapping[str, Callable[[], logging.Formatter]] = {"text": TextFormatter, "json": JsonLines}


def configure(log_format: str) -> None:
    """Write this process's logs in one of `FORMATS`. vLLM, imported before, follows.

    The engine's own processes keep vLLM's text.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[log_format]())
    logging.basicConfig(handlers=[handler])
    logging.getLogger("taskmix_server").setLevel(logging.INFO)  # vLLM's app sets the root's level
    if log_format != "text":
        for other in logging.getLogger("vllm").handlers:
            other.setFormatter(handler.formatter)


def log_request(record: RequestRecord) -> None:
    """A `Report`: everything about a request but its prompt, its answer and its mix's terms."""
    logger.info("request", extra={FIELDS: request_fields(record)})


def request_fields(record: RequestRecord) -> dict[str, str | int | float]:
    """Names and values of the line; what is not known is left out."""
    fields: dict[str, str | int | float | None] = {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "edge": record.edge,
        "tenant": record.tenant,
        "mix": record.mix,
        "digest": record.digest,
        "arm": record.arm,
        "outcome": outcome_of(record.error)[0],
        "error": record.error,
        "limit": record.limit,
        "status": record.status,
        "prompt_tokens": record.num_prompt_tokens,
        "cached_tokens": record.num_cached_tokens,
        "output_tokens": record.num_output_tokens,
        "resolve_s": _since(record, record.resolved_s),
        "ttft_s": _rounded(record.ttft_s),
        "duration_s": _rounded(record.duration_s),
    }
    return {name: value for name, value in fields.items() if value is not None and value != ""}


def _since(record: RequestRecord, moment_s: float | None) -> float | None:
    return None if moment_s is None else _rounded(moment_s - record.started_s)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
