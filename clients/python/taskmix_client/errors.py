"""What a call may raise: one tree under TaskMixError, one leaf per kind of refusal."""

from collections.abc import Mapping

import grpc


class TaskMixError(Exception):
    """Anything a call may raise. The message is the server's own where the server answered."""


class InvalidArgumentError(TaskMixError):
    """The request is malformed; the message says where."""


class UnauthenticatedError(TaskMixError):
    """The server wants another API key."""


class PermissionDeniedError(TaskMixError):
    """The key is known but may not do this."""


class NotFoundError(TaskMixError):
    """A task, mix or experiment is unknown, or hidden from this key."""


class AlreadyExistsError(TaskMixError):
    """The name stands for something else already."""


class FailedPreconditionError(TaskMixError):
    """The server's state does not allow it now."""


class ResourceExhaustedError(TaskMixError):
    """A quota, rate or queue is full.

    `retry_after_s` is the wait in seconds that the server asked for, or None.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(TaskMixError):
    """`timeout_s` passed first. The server has stopped the work."""


class CancelledError(TaskMixError):
    """The call was cancelled."""


class UnavailableError(TaskMixError):
    """No server answers, or it is starting or draining."""


class InternalError(TaskMixError):
    """The server failed; its message carries the request id to look for in its logs."""


STATUS_ERRORS: Mapping[grpc.StatusCode, type[TaskMixError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgumentError,
    grpc.StatusCode.UNAUTHENTICATED: UnauthenticatedError,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDeniedError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.ALREADY_EXISTS: AlreadyExistsError,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPreconditionError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhaustedError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceededError,
    grpc.StatusCode.CANCELLED: CancelledError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.INTERNAL: InternalError,
}

# gRPC's own name for a server's retry-after, in milliseconds.
PUSHBACK_KEY = "grpc-retry-pushback-ms"


def from_rpc(error: grpc.RpcError, *, target: str) -> TaskMixError:
    """Name the failure of a call to `target`. A status outside the table is an InternalError."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError), "gRPC raises its calls"
    code = error.code()
    details = error.details() or "no details"
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ResourceExhaustedError(details, _retry_after_s(error))
    if code is grpc.StatusCode.UNAVAILABLE:
        advice = "check that `taskmix serve` runs there and is ready"
        return UnavailableError(f"{target} does not answer ({details}); {advice}")
    if code not in STATUS_ERRORS:
        return InternalError(f"{target} answered {code.name}: {details}")
    return STATUS_ERRORS[code](details)


def _retry_after_s(error: grpc.Call | grpc.aio.AioRpcError) -> float | None:
    for key, value in error.trailing_metadata() or ():
        if key == PUSHBACK_KEY and int(value) >= 0:
            return int(value) / 1000
    return None
