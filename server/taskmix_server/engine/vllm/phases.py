"""When vLLM's engine worked on a request, as it says in the request's last output."""

from typing import Any

from taskmix_server.telemetry.requests import Phases


def phases_of(output: Any) -> Phases | None:
    """The times of a finished `RequestOutput`; None before it has ended, or without any token.

    vLLM takes them in the core's process from the clock that `time.monotonic` reads here.
    """
    stats = output.metrics
    if not output.finished or stats is None or not stats.first_token_ts:
        return None
    return Phases(stats.queued_ts, stats.scheduled_ts, stats.first_token_ts, stats.last_token_ts)
