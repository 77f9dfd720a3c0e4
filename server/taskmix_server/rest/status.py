"""HTTP status of every error, and the body that OpenAI's clients understand."""

import asyncio
import math
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

from taskmix_composer import errors as composer
from taskmix_server import errors as serving

CLIENT_CLOSED = "499"

STATUS: Mapping[type[Exception], HTTPStatus] = {
    serving.InvalidRequestError: HTTPStatus.BAD_REQUEST,
    serving.UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    serving.PermissionDeniedError: HTTPStatus.FORBIDDEN,
    serving.NotFoundError: HTTPStatus.NOT_FOUND,
    serving.FailedPreconditionError: HTTPStatus.CONFLICT,
    serving.AlreadyExistsError: HTTPStatus.CONFLICT,
    serving.ResourceExhaustedError: HTTPStatus.TOO_MANY_REQUESTS,
    serving.DeadlineExceededError: HTTPStatus.GATEWAY_TIMEOUT,
    serving.UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    serving.InternalError: HTTPStatus.INTERNAL_SERVER_ERROR,
    serving.EngineIncompatibleError: HTTPStatus.CONFLICT,
    serving.UnsupportedModelError: HTTPStatus.CONFLICT,
    composer.InvalidMixError: HTTPStatus.BAD_REQUEST,
    composer.InvalidSchemeError: HTTPStatus.BAD_REQUEST,
    composer.UnknownTaskError: HTTPStatus.NOT_FOUND,
    composer.TaskExistsError: HTTPStatus.CONFLICT,
    composer.BankExistsError: HTTPStatus.CONFLICT,
    composer.BankBusyError: HTTPStatus.CONFLICT,
    composer.BankFormatError: HTTPStatus.CONFLICT,
    composer.InvalidMethodError: HTTPStatus.BAD_REQUEST,
    composer.InvalidPlanError: HTTPStatus.BAD_REQUEST,
    composer.UnarchivedError: HTTPStatus.CONFLICT,
    composer.MissingGramError: HTTPStatus.CONFLICT,
    composer.BaseMismatchError: HTTPStatus.CONFLICT,
    composer.CheckpointError: HTTPStatus.CONFLICT,
}


def status_name(error: BaseException) -> str:
    """The status with which an error ends a request; 499 where nobody waits for one."""
    if isinstance(error, asyncio.CancelledError):
        return CLIENT_CLOSED
    return str(STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR).value)  # type: ignore[arg-type]


def error_response(error: serving.ServingError | composer.ComposerError) -> JSONResponse:
    """The error as OpenAI's API would send it; retry-after where it says when."""
    headers = {}
    if isinstance(error, serving.ResourceExhaustedError):
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, serving.UnauthenticatedError):
        headers["www-authenticate"] = "Bearer"
    return json_error(STATUS[type(error)], type(error).__name__, str(error), headers)


def json_error(
    status: HTTPStatus, kind: str, message: str, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """`{"error": {...}}` with an HTTP status."""
    body = {"message": message, "type": kind, "param": None, "code": status.value}
    return JSONResponse({"error": body}, status, headers)
