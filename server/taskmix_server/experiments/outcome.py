"""What was measured of a request, and what a caller reports afterwards."""

import math
from dataclasses import dataclass
from datetime import datetime

from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.design import check_name, check_subject

MAX_KEY_CHARACTERS = 128
COUNT_SUFFIX = ".count"
"""What a metric's name gets where its outcomes are counted, not summed."""

BUILT_IN = ("requests", "answers", "errors", "latency_s", "ttft_s", "tokens", "length_stops")
"""What the server measures by itself; no caller may report these."""

RESERVED = frozenset({*BUILT_IN, "error_rate", "subjects"})

CANCELLED = "cancelled"
"""The finish reason of a request whose caller left: neither an answer nor an error."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a request under an arm left behind; times are seconds, `at` is in UTC.

    subject: empty where the request itself was assigned. error: the name of what went wrong, empty
    for an answer. agreement, served_logprob, served_tokens: of a shadow's answer with the served
    one, the share of equal tokens, the mean log-probability that the shadow gives to the served
    ones, and how many those are.
    """

    experiment_id: int
    tenant_id: str
    request_id: str
    arm: str
    subject: str
    is_override: bool
    at: datetime
    latency_s: float
    ttft_s: float | None
    num_tokens: int
    error: str = ""
    finish_reason: str = ""
    is_shadow: bool = False
    agreement: float | None = None
    served_logprob: float | None = None
    served_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """A number that a caller reports of a subject, or of a request: one of the two.

    key: the caller's own; repeating an outcome under its key is harmless. at: when it came about,
    in UTC; None is now.
    """

    key: str
    metric: str
    value: float
    subject: str = ""
    request_id: str = ""
    at: datetime | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.key) <= MAX_KEY_CHARACTERS:
            raise InvalidRequestError(
                f"an outcome needs a key of at most {MAX_KEY_CHARACTERS} characters, so that it "
                "counts once however often it is sent; a random UUID will do"
            )
        self._check_metric()
        if not math.isfinite(self.value):
            raise InvalidRequestError(
                f"outcome {self.key!r} of {self.metric!r} is {self.value}; values must be finite"
            )
        if bool(self.subject) == bool(self.request_id):
            raise InvalidRequestError(
                f"outcome {self.key!r} must name a subject or a request: one of them"
            )
        if self.subject:
            check_subject(self.subject)

    def _check_metric(self) -> None:
        check_name(self.metric, "a metric")
        if self.metric in RESERVED or self.metric.endswith(COUNT_SUFFIX):
            raise InvalidRequestError(
                f"metric {self.metric!r} is the server's own; choose another name than "
                f"{', '.join(sorted(RESERVED))} or one that ends in {COUNT_SUFFIX}"
            )
