"""How requests end, in a few words that metrics, spans and logs share."""

from collections.abc import Mapping

OK = "ok"
REFUSED = "refused"
FAILED = "failed"
CANCELLED = "cancelled"

LEFT = "CancelledError"
"""The error of a request whose caller went away or whose deadline passed; its work was stopped."""

CUT_OFF = frozenset({LEFT, "GeneratorExit"})
LATE = "DEADLINE_EXCEEDED"
"""The error of a request that was cut off while it was answered, and the status of one of those
whose deadline had passed."""

CANCELLATIONS = frozenset({*CUT_OFF, "DeadlineExceededError"})
"""The last one is of callers who do not send their body, or do not read their answer."""

REFUSALS: Mapping[str, str] = {
    "InvalidRequestError": "invalid",
    "InvalidMixError": "invalid",
    "InvalidSchemeError": "invalid",
    "InvalidMethodError": "invalid",
    "InvalidPlanError": "invalid",
    "HTTP 400": "invalid",
    "HTTP 413": "invalid",
    "HTTP 415": "invalid",
    "HTTP 422": "invalid",
    "UnauthenticatedError": "unauthenticated",
    "PermissionDeniedError": "forbidden",
    "NotFoundError": "not_found",
    "UnknownTaskError": "not_found",
    "HTTP 404": "not_found",
    "AlreadyExistsError": "conflict",
    "TaskExistsError": "conflict",
    "BankExistsError": "conflict",
    "BankBusyError": "conflict",
    "BankFormatError": "conflict",
    "UnarchivedError": "conflict",
    "MissingGramError": "conflict",
    "BaseMismatchError": "conflict",
    "CheckpointError": "conflict",
    "FailedPreconditionError": "conflict",
    "UnsupportedModelError": "conflict",
    "EngineIncompatibleError": "conflict",
    "ResourceExhaustedError": "limit",
    "HTTP 429": "limit",
    "UnavailableError": "unavailable",
    "HTTP 503": "unavailable",
}
"""Reason by error. Errors go by the names of their classes; `HTTP` ones are of vLLM's app."""


CALLERS_OWN = frozenset(
    {
        "InvalidRequestError",
        "HTTP 400",
        "HTTP 413",
        "HTTP 415",
        "HTTP 422",
        "ResourceExhaustedError",
        "HTTP 429",
    }
)
"""What ends a request under a mix that its caller did not write, and is about the request: it asks
for what cannot be, or for too much. Anything else is about the mix or what serves it."""


def outcome_of(error: str, limit: str = "") -> tuple[str, str]:
    """Outcome and reason of a request that ended with an error of this name, empty for none.

    limit: which one was met, where it was one. The reason of a failure is the error itself; answers
    and cancellations have none.
    """
    if limit:
        return REFUSED, f"limit_{limit}"
    if not error:
        return OK, ""
    if error in CANCELLATIONS:
        return CANCELLED, ""
    if error in REFUSALS:
        return REFUSED, REFUSALS[error]
    return FAILED, error
