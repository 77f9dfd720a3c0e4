"""Connections that are slow or idle are cut off, and what they asked for ends."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import pytest
import uvicorn
from google.protobuf.wrappers_pb2 import BytesValue
from starlette.types import Receive, Scope, Send
from vllm.entrypoints.launchers.launcher import NoSignalServer

from taskmix_server.rest import connection
from taskmix_server.rest.connection import BoundedConnection
from taskmix_server.rpc import server as rpc_server
from taskmix_server.rpc import status, writing
from taskmix_server.rpc.status import Context, reported

SHORT_S = 0.5
LATEST_S = 10.0
PIECE = b"x" * 8192
REQUEST = b"GET / HTTP/1.1\r\nhost: here\r\n\r\n"


class Endless:
    """An ASGI app that answers with pieces for ever; `ended` tells when nobody takes them."""

    def __init__(self) -> None:
        self.ended = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        gone = asyncio.create_task(receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not gone.done():
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            await asyncio.sleep(0)
        self.ended.set()


async def answered(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def answering(app: Any, **options: Any) -> AsyncIterator[int]:
    """The port of a server of `app`."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, http=BoundedConnection, ws="none", lifespan="off", log_config=None, **options
    )
    server = NoSignalServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await serving


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in (
        (connection, "HEAD_S"),
        (connection, "READER_S"),
        (writing, "READER_S"),
        (status, "ABORT_S"),
    ):
        monkeypatch.setattr(module, name, SHORT_S)


@pytest.mark.usefixtures("hurried")
async def test_an_http_reader_that_stops() -> None:
    app = Endless()
    async with answering(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(REQUEST)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await asyncio.wait_for(app.ended.wait(), LATEST_S)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(2**30), LATEST_S)
        writer.close()


@pytest.mark.usefixtures("hurried")
async def test_an_http_reader_that_reads() -> None:
    app = Endless()
    async with answering(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 3 * SHORT_S
        while loop.time() < until_s:
            await reader.readexactly(len(PIECE))
        assert not app.ended.is_set()
        writer.close()
        await asyncio.wait_for(app.ended.wait(), LATEST_S)


async def drip(writer: asyncio.StreamWriter) -> None:
    """Send a byte now and then."""
    while True:
        writer.write(b"e")
        await asyncio.sleep(SHORT_S / 10)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("is_dripping", [False, True])
async def test_a_head_that_does_not_end(*, is_dripping: bool) -> None:
    """The whole head has one limit, however it comes."""
    async with answering(Endless()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST[:-4])
        dripping = asyncio.create_task(drip(writer)) if is_dripping else None
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), LATEST_S) == b""
        if dripping is not None:
            dripping.cancel()
        writer.close()


async def test_a_connection_that_is_idle() -> None:
    async with answering(answered, timeout_keep_alive=SHORT_S) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        assert (await asyncio.wait_for(reader.read(), LATEST_S)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_head_that_is_too_large() -> None:
    async with answering(Endless()) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\nx: " + b"x" * 100_000 + b"\r\n\r\n")
        assert (await asyncio.wait_for(reader.readline(), LATEST_S)).startswith(b"HTTP/1.1 400")
        writer.close()


@asynccontextmanager
async def streaming() -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A gRPC server of an endless stream `/s/m`: its port, and when a stream has ended."""
    ended = asyncio.Event()

    async def stream(request: bytes, context: Context) -> None:
        try:
            async with reported(context):
                while True:
                    await writing.write(context, BytesValue(value=PIECE))
        finally:
            ended.set()

    handler = grpc.unary_stream_rpc_method_handler(
        stream,  # type: ignore[arg-type]
        response_serializer=BytesValue.SerializeToString,
    )
    server = grpc.aio.server(options=rpc_server.OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("s", {"m": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port, ended
    finally:
        await server.stop(0)


async def read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass


@pytest.mark.usefixtures("hurried")
async def test_a_grpc_reader_that_stops() -> None:
    async with (
        streaming() as (port, ended),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call: Any = channel.unary_stream("/s/m", response_deserializer=BytesValue.FromString)(b"")
        await call.read()
        await asyncio.wait_for(ended.wait(), LATEST_S)
        with pytest.raises(grpc.aio.AioRpcError, match="nothing of the answer was read") as refusal:
            await asyncio.wait_for(read_all(call), LATEST_S)
        assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.usefixtures("hurried")
async def test_a_grpc_reader_that_reads() -> None:
    async with (
        streaming() as (port, ended),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call: Any = channel.unary_stream("/s/m", response_deserializer=BytesValue.FromString)(b"")
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 3 * SHORT_S
        while loop.time() < until_s:
            await call.read()
        assert not ended.is_set()
        call.cancel()
        await asyncio.wait_for(ended.wait(), LATEST_S)


async def test_metadata_that_is_too_large() -> None:
    async with (
        streaming() as (port, _),
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        call: Any = channel.unary_stream("/s/m")(b"", metadata=(("x", "x" * 20_000),))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await asyncio.wait_for(call.read(), LATEST_S)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
