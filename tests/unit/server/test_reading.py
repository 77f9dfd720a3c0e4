"""Messages that cannot be parsed, and calls without one: the caller is told, and at once."""

from contextlib import suppress
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from taskmix.v1 import bank_pb2
from taskmix_server.rpc import reading
from tests.unit.server.conftest import Parts
from tests.unit.server.secured import Secured, secured

TASKS = "/taskmix.v1.BankService/ListTasks"
STREAM = "/taskmix.v1.InferenceService/StreamGenerate"
CHECK = "/grpc.health.v1.Health/Check"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
DAMAGED = b"\x0a\xff"
ANSWER_S = 10.0


async def ended(served: Secured, path: str, *sent: bytes) -> tuple[StatusCode, str]:
    """How a call with these messages ends."""
    metadata = (("authorization", f"Bearer {served.keys['ops']}"),)
    call: Any = served.channel.stream_stream(path)(iter(sent), metadata=metadata, timeout=ANSWER_S)
    with suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    return await call.code(), await call.details()


@pytest.mark.parametrize("path", [TASKS, STREAM, CHECK, REFLECTION])
async def test_a_damaged_message(parts: Parts, path: str) -> None:
    async with secured(parts) as served:
        code, details = await ended(served, path, DAMAGED)
    assert code is StatusCode.INVALID_ARGUMENT
    assert details.startswith("the message cannot be parsed")


@pytest.mark.parametrize("path", [TASKS, STREAM, CHECK])
async def test_a_call_without_a_message(parts: Parts, path: str) -> None:
    async with secured(parts) as served:
        code, details = await ended(served, path)
    assert (code, details) == (StatusCode.INVALID_ARGUMENT, "the call ended without a message")


@pytest.mark.parametrize("path", [TASKS, STREAM, CHECK, REFLECTION])
async def test_a_caller_who_sends_nothing(
    parts: Parts, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MESSAGE_S", 0.01)
    async with secured(parts) as served:
        metadata = (("authorization", f"Bearer {served.keys['ops']}"),)
        call: Any = served.channel.stream_stream(path)(metadata=metadata, timeout=ANSWER_S)
        with pytest.raises(grpc.aio.AioRpcError, match="no message came within") as refusal:
            await call.read()
    assert refusal.value.code() is StatusCode.DEADLINE_EXCEEDED


async def test_only_the_first_message_of_a_call_counts(parts: Parts) -> None:
    wire = bank_pb2.ListTasksRequest().SerializeToString()
    async with secured(parts) as served:
        assert (await ended(served, TASKS, wire, DAMAGED))[0] is StatusCode.OK


async def test_without_a_key_nothing_is_said_of_the_message(parts: Parts) -> None:
    async with secured(parts) as served:
        call: Any = served.channel.unary_unary(TASKS)(b"", timeout=ANSWER_S)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call
    assert refusal.value.code() is StatusCode.UNAUTHENTICATED
