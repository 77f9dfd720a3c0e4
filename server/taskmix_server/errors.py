"""What can go wrong while serving: one tree, one name per way the caller can react."""


class ServingError(Exception):
    """Base of every error that this server raises on purpose."""


class InvalidRequestError(ServingError):
    """The request itself is wrong; sending it again will not help."""


class UnauthenticatedError(ServingError):
    """No API key, or one that is not known."""


class PermissionDeniedError(ServingError):
    """The caller is known and may not do this."""


class NotFoundError(ServingError):
    """A task, mix or experiment that does not exist or that the caller may not use."""


class FailedPreconditionError(ServingError):
    """The state of the server does not allow it now; changing that state would."""


class AlreadyExistsError(ServingError):
    """The name is taken by other content."""


LIMITS = ("requests", "tokens", "concurrency", "queue", "overload", "memory")
"""What can be exhausted: a tenant's rates, its answers at a time and in the queue, the server's
own queue, and a tenant's bytes of tasks."""


class ResourceExhaustedError(ServingError):
    """A limit was reached; try again after `retry_after_s` seconds.

    reason: which limit, one of `LIMITS`.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0, reason: str = "overload") -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.reason = reason


class DeadlineExceededError(ServingError):
    """The caller's deadline passed; the work was stopped."""


class UnavailableError(ServingError):
    """Starting, draining, or the engine is down."""


class InternalError(ServingError):
    """Our bug. The caller sees a request id and nothing else."""


class EngineIncompatibleError(ServingError):
    """The installed vLLM is not one that taskmix was tried with."""


class UnsupportedModelError(ServingError):
    """The base model, or a tensor that a task changes, cannot be mixed by this engine."""
