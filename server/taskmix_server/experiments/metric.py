"""Which numbers an experiment is judged by."""

from dataclasses import dataclass

from taskmix_server.errors import InvalidRequestError

SUBJECTS = "subjects"
"""The column of ones: a sum over it counts subjects."""

QUANTILES = ("latency_s", "ttft_s", "tokens")
"""What single requests have, so that a rule may be about its quantiles."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A ratio of two sums over subjects' requests or outcomes, by the names of their columns."""

    name: str
    of: str
    per: str = SUBJECTS

    @classmethod
    def parse(cls, text: str) -> "Metric":
        """Read what the server measures, `clicks`, which is per subject, or `clicks/views`."""
        for metric in MEASURED:
            if text == metric.name:
                return metric
        of, slash, per = text.partition("/")
        if not of or (slash and not per) or "/" in per:
            raise InvalidRequestError(
                f"{text!r:.80} is not a metric, nor a ratio of two such as clicks/views"
            )
        return cls(text, of, per or SUBJECTS)


MEASURED = (
    Metric("error_rate", "errors", "requests"),
    Metric("latency_s", "latency_s", "answers"),
    Metric("ttft_s", "ttft_s", "answers"),
    Metric("tokens", "tokens", "answers"),
    Metric("length_stops", "length_stops", "answers"),
    Metric("requests", "requests"),
)
"""What the server measures by itself."""
