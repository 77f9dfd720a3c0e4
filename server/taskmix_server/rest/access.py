"""Admission to HTTP: who calls is found out before any route sees the request."""

from starlette.types import ASGIApp, Receive, Scope, Send

from taskmix_server.errors import ServingError
from taskmix_server.rest.status import error_response
from taskmix_server.services.access import AccessService, bearer_key
from taskmix_server.tenancy.principal import Principal

_CALLER = "taskmix.caller"


def caller(scope: Scope) -> Principal:
    """Who makes the request."""
    principal: Principal = scope[_CALLER]
    return principal


def call_name(method: str, path: str) -> str:
    """A request as the rules name it. HEAD is GET without the answer."""
    return f"{'GET' if method == 'HEAD' else method} {path}"


class AccessMiddleware:
    """Admits each request, or answers it with what `AccessService` raised."""

    def __init__(self, app: ASGIApp, access: AccessService) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = [value for name, value in scope["headers"] if name == b"authorization"]
        key = bearer_key(headers[0].decode("latin-1")) if headers else None
        try:
            principal = await self._access.admit(call_name(scope["method"], scope["path"]), key)
        except ServingError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app({**scope, _CALLER: principal}, receive, send)
