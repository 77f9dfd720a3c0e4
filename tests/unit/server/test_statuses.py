"""Both edges have a status for every error of both trees, and they agree with the contract."""

from collections.abc import Iterator
from http import HTTPStatus

import pytest
from grpc import StatusCode

from taskmix_composer import errors as composer
from taskmix_server import errors as serving
from taskmix_server.rest import status as rest
from taskmix_server.rpc import status as rpc

PAIRS = {
    StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    StatusCode.FAILED_PRECONDITION: HTTPStatus.CONFLICT,
    StatusCode.ALREADY_EXISTS: HTTPStatus.CONFLICT,
    StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    StatusCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}


def descendants(kind: type[Exception]) -> Iterator[type[Exception]]:
    for child in kind.__subclasses__():
        yield child
        yield from descendants(child)


LEAVES = [*descendants(serving.ServingError), *descendants(composer.ComposerError)]


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_on_both_edges(kind: type[Exception]) -> None:
    assert rest.STATUS[kind] is PAIRS[rpc.STATUS[kind]]


def test_the_tables_name_nothing_else() -> None:
    assert set(rpc.STATUS) == set(rest.STATUS) == set(LEAVES)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (composer.InvalidMixError("m"), StatusCode.INVALID_ARGUMENT),
        (composer.UnknownTaskError("m"), StatusCode.NOT_FOUND),
        (composer.BaseMismatchError("m"), StatusCode.FAILED_PRECONDITION),
        (serving.AlreadyExistsError("m"), StatusCode.ALREADY_EXISTS),
        (serving.UnavailableError("m"), StatusCode.UNAVAILABLE),
    ],
)
def test_rows_of_the_contract(error: Exception, code: StatusCode) -> None:
    assert rpc.STATUS[type(error)] is code


def test_retry_after() -> None:
    response = rest.error_response(serving.ResourceExhaustedError("queue full", retry_after_s=1.2))
    assert response.status_code == 429
    assert response.headers["retry-after"] == "2"
