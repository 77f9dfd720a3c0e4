"""Messages of a call, as they come off the wire.

gRPC's own server ends a call whose message cannot be parsed with UNKNOWN, as if the fault were
ours, and one that ends without a message with nothing at all: its caller would wait for ever. For
a caller who sends nothing it waits itself.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from taskmix_server.errors import DeadlineExceededError, InvalidRequestError
from taskmix_server.rpc.status import Context, reported

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
MESSAGE_S = 60.0

Parse = Callable[[bytes], Any]
RawMessages = AsyncIterator[bytes]


class ReadingInterceptor(grpc.aio.ServerInterceptor):
    """Hands methods the messages that they take, and ends calls with others: INVALID_ARGUMENT."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        handler = await continuation(handler_call_details)
        return handler and _reading(handler)


def _reading(handler: Any) -> Handler:
    """The handler as one that gets raw messages. To gRPC all of them take streams, of which those
    that want a single message take the first."""
    parse: Parse = handler.request_deserializer or bytes
    serializer = handler.response_serializer
    if handler.request_streaming:
        answered = _with_all(handler.stream_stream, parse)
        return grpc.stream_stream_rpc_method_handler(answered, None, serializer)
    if handler.response_streaming:
        answered = _with_first(handler.unary_stream, parse)
        return grpc.stream_stream_rpc_method_handler(answered, None, serializer)
    answered = _with_first(handler.unary_unary, parse)
    return grpc.stream_unary_rpc_method_handler(answered, None, serializer)


def _with_first(method: Callable[[Any, Context], Awaitable[Any]], parse: Parse) -> Any:
    async def call(raw: RawMessages, context: Context) -> Any:
        async with reported(context):
            message = await _next(context)
            if message is grpc.aio.EOF:
                raise InvalidRequestError("the call ended without a message")
            request = _parsed(message, parse)
        return await method(request, context)

    return call


def _with_all(method: Callable[[Any, Context], AsyncIterator[Any]], parse: Parse) -> Any:
    async def call(raw: RawMessages, context: Context) -> AsyncIterator[Any]:
        async with reported(context):
            async for answer in method(_requests(context, parse), context):
                yield answer

    return call


async def _requests(context: Context, parse: Parse) -> AsyncIterator[Any]:
    while (message := await _next(context)) is not grpc.aio.EOF:
        yield _parsed(message, parse)


async def _next(context: Context) -> Any:
    """The call's next message, or EOF; DeadlineExceededError where neither comes in time."""
    try:
        async with asyncio.timeout(MESSAGE_S):
            return await context.read()
    except TimeoutError:
        raise DeadlineExceededError(
            f"no message came within {MESSAGE_S:.0f} s; call again when there is one"
        ) from None


def _parsed(message: bytes, parse: Parse) -> Any:
    try:
        return parse(message)
    except DecodeError as error:
        raise InvalidRequestError(f"the message cannot be parsed: {error}") from None
