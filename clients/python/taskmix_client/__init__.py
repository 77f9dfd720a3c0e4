"""Client of a taskmix server: `Client` blocks, `AsyncClient` is awaited."""

from taskmix_client.aio import AsyncClient
from taskmix_client.errors import (
    AlreadyExistsError,
    CancelledError,
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
    TaskMixError,
    UnauthenticatedError,
    UnavailableError,
)
from taskmix_client.models import Answer, Chunk, Completion, NamedMix, Task, Timings, Usage
from taskmix_client.sync import Client

__all__ = [
    "AlreadyExistsError",
    "Answer",
    "AsyncClient",
    "CancelledError",
    "Chunk",
    "Client",
    "Completion",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "NamedMix",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "Task",
    "TaskMixError",
    "Timings",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
]
