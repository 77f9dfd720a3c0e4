"""The gRPC edge over a fake engine: what a caller sees of our own bugs."""

import logging
from collections.abc import AsyncIterator

import pytest

from taskmix_client import AsyncClient, InternalError, ResourceExhaustedError
from taskmix_server import errors
from taskmix_server.rpc.server import GrpcEdge
from tests.unit.server.conftest import Parts


@pytest.fixture
async def client(parts: Parts) -> AsyncIterator[AsyncClient]:
    edge = GrpcEdge(parts.services)
    port = await edge.start("127.0.0.1", 0)
    async with AsyncClient(f"127.0.0.1:{port}", timeout_s=20, max_attempts=1) as opened:
        yield opened
    await edge.stop(0.0)


async def test_answers(client: AsyncClient) -> None:
    answer = await client.generate([1, 2], mix="head", max_tokens=2)
    assert answer.token_ids == (0, 1)
    assert [chunk.text async for chunk in client.stream([1], max_tokens=2)] == ["0 ", "1 "]


@pytest.mark.parametrize("failure", [RuntimeError("secret"), errors.InternalError("secret")])
async def test_our_bugs_tell_an_id_and_nothing_else(
    client: AsyncClient, parts: Parts, caplog: pytest.LogCaptureFixture, failure: Exception
) -> None:
    parts.engine.failure = failure
    with pytest.raises(InternalError, match=r"^internal error \(request [0-9a-f]{32}\)$") as whole:
        await client.generate([1])
    with pytest.raises(InternalError, match=r"^internal error \(request [0-9a-f]{32}\)$"):
        async for _ in client.stream([1]):
            pass
    request_id = str(whole.value).split()[-1].rstrip(")")
    logged = [r for r in caplog.records if r.levelno == logging.ERROR and request_id in r.message]
    assert "secret" in caplog.text
    assert logged
    parts.engine.failure = None
    assert (await client.generate([1], max_tokens=1)).token_ids == (0,)


async def test_retry_after(client: AsyncClient, parts: Parts) -> None:
    parts.engine.failure = errors.ResourceExhaustedError("queue full", retry_after_s=2.5)
    with pytest.raises(ResourceExhaustedError, match="queue full") as caught:
        await client.generate([1])
    assert caught.value.retry_after_s == 2.5


async def test_admin_bugs_tell_nothing(client: AsyncClient, parts: Parts) -> None:
    parts.engine.failure = RuntimeError("secret")
    with pytest.raises(InternalError, match="internal error") as caught:
        await client.load_task("late")
    assert "secret" not in str(caught.value)


async def test_a_taken_port(parts: Parts) -> None:
    first = GrpcEdge(parts.services)
    port = await first.start("127.0.0.1", 0)
    second = GrpcEdge(parts.services)
    with pytest.raises(errors.FailedPreconditionError, match="--grpc-port"):
        await second.start("127.0.0.1", port)
    await first.stop(0.0)
    await second.stop(0.0)


async def test_cancelling_a_call_stops_its_work(client: AsyncClient, parts: Parts) -> None:
    chunks = client.stream([1], mix="head", max_tokens=10**6)
    await anext(chunks)
    assert parts.tasks.num_references == 1
    await chunks.aclose()
    await parts.engine.seen["end"].wait()
    await parts.inference.state.drain(grace_s=10.0)
    assert parts.tasks.num_references == 0
