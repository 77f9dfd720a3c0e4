"""Admission to gRPC: an interceptor finds out who calls before any method sees the call."""

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, TypeAlias

import grpc

from taskmix_server.rpc.status import Context, reported
from taskmix_server.services.access import AccessService, bearer_key
from taskmix_server.tenancy.principal import Principal

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler]]

_CALLER: ContextVar[Principal] = ContextVar("taskmix_caller")


def caller() -> Principal:
    """Who makes the call being served."""
    return _CALLER.get()


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Admits each call, or ends it with what `AccessService` raised."""

    def __init__(self, access: AccessService) -> None:
        self._access = access

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler:
        try:
            principal = await self._access.admit(
                handler_call_details.method, _key(handler_call_details)
            )
        except Exception as error:  # noqa: BLE001 - reported by the handler, the only place that can
            return _refusing(error)
        _CALLER.set(principal)
        return await continuation(handler_call_details)


def _key(details: grpc.HandlerCallDetails) -> str | None:
    headers = [value for name, value in details.invocation_metadata if name == "authorization"]
    return bearer_key(str(headers[0])) if headers else None


def _refusing(error: Exception) -> Handler:
    async def refuse(request: Any, context: Context) -> Any:
        async with reported(context):
            raise error

    return grpc.unary_unary_rpc_method_handler(refuse)
