"""What an operator chooses about logs and traces; free of their libraries."""

from dataclasses import dataclass

LOG_FORMATS = ("text", "json")


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """log_format: one of `LOG_FORMATS`. otlp_endpoint: the URL to which spans are posted, such as
    `http://collector:4318/v1/traces`; None makes none."""

    log_format: str = "text"
    otlp_endpoint: str | None = None
