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
from taskmix_client.tenants import ApiKey, AuditRecord, NewKey, Tenant, TenantLimits

__all__ = [
    "AlreadyExistsError",
    "Answer",
    "ApiKey",
    "AsyncClient",
    "AuditRecord",
    "CancelledError",
    "Chunk",
    "Client",
    "Completion",
    "DeadlineExceededError",
    "FailedPreconditionError",
    "InternalError",
    "InvalidArgumentError",
    "NamedMix",
    "NewKey",
    "NotFoundError",
    "PermissionDeniedError",
    "ResourceExhaustedError",
    "Task",
    "TaskMixError",
    "Tenant",
    "TenantLimits",
    "Timings",
    "UnauthenticatedError",
    "UnavailableError",
    "Usage",
]
