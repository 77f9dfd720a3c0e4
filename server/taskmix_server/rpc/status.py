"""gRPC status of every error this server raises on purpose, and the one place that reports them."""

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
from grpc import StatusCode

from taskmix_composer import errors as composer
from taskmix_server import errors as serving

logger = logging.getLogger(__name__)

STATUS: Mapping[type[Exception], StatusCode] = {
    serving.InvalidRequestError: StatusCode.INVALID_ARGUMENT,
    serving.UnauthenticatedError: StatusCode.UNAUTHENTICATED,
    serving.PermissionDeniedError: StatusCode.PERMISSION_DENIED,
    serving.NotFoundError: StatusCode.NOT_FOUND,
    serving.FailedPreconditionError: StatusCode.FAILED_PRECONDITION,
    serving.AlreadyExistsError: StatusCode.ALREADY_EXISTS,
    serving.ResourceExhaustedError: StatusCode.RESOURCE_EXHAUSTED,
    serving.DeadlineExceededError: StatusCode.DEADLINE_EXCEEDED,
    serving.UnavailableError: StatusCode.UNAVAILABLE,
    serving.InternalError: StatusCode.INTERNAL,
    serving.EngineIncompatibleError: StatusCode.FAILED_PRECONDITION,
    serving.UnsupportedModelError: StatusCode.FAILED_PRECONDITION,
    composer.InvalidMixError: StatusCode.INVALID_ARGUMENT,
    composer.InvalidSchemeError: StatusCode.INVALID_ARGUMENT,
    composer.UnknownTaskError: StatusCode.NOT_FOUND,
    composer.TaskExistsError: StatusCode.ALREADY_EXISTS,
    composer.BankExistsError: StatusCode.ALREADY_EXISTS,
    composer.BankBusyError: StatusCode.FAILED_PRECONDITION,
    composer.BankFormatError: StatusCode.FAILED_PRECONDITION,
    composer.InvalidMethodError: StatusCode.INVALID_ARGUMENT,
    composer.InvalidPlanError: StatusCode.INVALID_ARGUMENT,
    composer.UnarchivedError: StatusCode.FAILED_PRECONDITION,
    composer.MissingGramError: StatusCode.FAILED_PRECONDITION,
    composer.BaseMismatchError: StatusCode.FAILED_PRECONDITION,
    composer.CheckpointError: StatusCode.FAILED_PRECONDITION,
}

OK_STATUS = StatusCode.OK.name
ABORT_S = 1.0

Context = grpc.aio.ServicerContext[Any, Any]


@asynccontextmanager
async def reported(context: Context, request_id: str = "") -> AsyncIterator[str]:
    """End the call with the status of whatever the block raises; the block gets the request's id.

    An error without a status is our bug: the caller gets INTERNAL with the request id, the log
    gets the rest.
    """
    request_id = request_id or uuid.uuid4().hex
    try:
        yield request_id
    except (serving.ServingError, composer.ComposerError) as error:
        await _abort(context, STATUS[type(error)], _message(error, request_id), _metadata(error))
    except Exception as error:
        if isinstance(error, grpc.aio.AbortError):
            raise
        logger.exception("request %s failed", request_id)
        await _abort(context, StatusCode.INTERNAL, f"internal error (request {request_id})")


async def _abort(
    context: Context, code: StatusCode, message: str, metadata: tuple[tuple[str, str], ...] = ()
) -> None:
    """End the call, without waiting for a caller who does not read what was sent before."""
    try:
        async with asyncio.timeout(ABORT_S):
            await context.abort(code, message, metadata)
    except TimeoutError:
        raise grpc.aio.AbortError from None  # the status stays queued behind those messages


def status_name(context: Context, error: BaseException) -> str:
    """The status with which an error ends a call."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        left_s: Any = context.time_remaining()  # None without a deadline, else 0 or more
        is_late = left_s is not None and left_s <= 0.0
        return (StatusCode.DEADLINE_EXCEEDED if is_late else StatusCode.CANCELLED).name
    return STATUS.get(type(error), StatusCode.INTERNAL).name  # type: ignore[arg-type]


def _message(error: Exception, request_id: str) -> str:
    if isinstance(error, serving.InternalError):
        logger.error("request %s failed: %s", request_id, error)
        return f"internal error (request {request_id})"
    return str(error)


def _metadata(error: Exception) -> tuple[tuple[str, str], ...]:
    if not isinstance(error, serving.ResourceExhaustedError):
        return ()
    return (("grpc-retry-pushback-ms", str(round(error.retry_after_s * 1000))),)
