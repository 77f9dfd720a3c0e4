"""How refusals arrive, what is repeated and what is not, over both clients."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import taskmix_client
from taskmix.v1 import admin_pb2, bank_pb2, experiments_pb2, inference_pb2
from taskmix_client import TaskMixError, errors
from taskmix_client.config import REPEATABLE, ClientConfig
from tests.unit.client.scripted import Script

ANSWER = inference_pb2.GenerateResponse(completions=[inference_pb2.Completion(text="ok")])


class Failing:
    """Refuses the first `times` calls with `code`, then answers."""

    def __init__(
        self,
        code: grpc.StatusCode,
        *,
        times: int = 99,
        answer: Any = ANSWER,
        trailers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        self.calls = 0
        self._refusal = (code, times, trailers)
        self._answer = answer

    def __call__(self, request: Any, context: grpc.ServicerContext) -> Any:
        code, times, trailers = self._refusal
        self.calls += 1
        if self.calls <= times:
            context.set_trailing_metadata(trailers)
            context.abort(code, f"refused {self.calls}")
        return self._answer


@pytest.mark.parametrize(("code", "kind"), errors.STATUS_ERRORS.items(), ids=str)
def test_each_status_has_its_error(
    connect: Any, script: Script, code: grpc.StatusCode, kind: type[TaskMixError]
) -> None:
    client = connect(max_attempts=1)
    script.answer("Generate", Failing(code))
    with pytest.raises(TaskMixError, match="refused 1") as caught:
        client.generate("p")
    assert type(caught.value) is kind


def test_every_error_is_exported_and_reachable() -> None:
    leaves = set(TaskMixError.__subclasses__())
    assert set(errors.STATUS_ERRORS.values()) == leaves
    assert {leaf.__name__ for leaf in leaves} <= set(taskmix_client.__all__)


def test_a_status_of_no_row_is_internal(client: Any, script: Script) -> None:
    script.answer("Generate", Failing(grpc.StatusCode.DATA_LOSS))
    with pytest.raises(taskmix_client.InternalError, match="DATA_LOSS: refused 1"):
        client.generate("p")


def test_a_stream_fails_with_the_same_errors(client: Any, script: Script) -> None:
    script.answer("StreamGenerate", Failing(grpc.StatusCode.NOT_FOUND))
    with pytest.raises(taskmix_client.NotFoundError, match="refused 1"):
        list(client.stream("p"))


def test_an_absent_server_is_unavailable_and_named(connect: Any, script: Script) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        script.target = f"127.0.0.1:{bound.getsockname()[1]}"
        client = connect(max_attempts=1)
        with pytest.raises(taskmix_client.UnavailableError, match="taskmix serve") as caught:
            client.generate("p")
    assert script.target in str(caught.value)


@pytest.mark.parametrize("trailers", [(), ((errors.PUSHBACK_KEY, "1"),)], ids=["backoff", "told"])
@pytest.mark.parametrize(
    "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED], ids=str
)
def test_a_passing_refusal_is_repeated(
    client: Any, script: Script, code: grpc.StatusCode, trailers: tuple[tuple[str, str], ...]
) -> None:
    handler = Failing(code, times=2, trailers=trailers)
    script.answer("Generate", handler)
    assert client.generate("p").text == "ok"
    assert handler.calls == 3


def test_the_server_says_how_long_to_wait(connect: Any, script: Script) -> None:
    client = connect(max_attempts=1)
    trailers = ((errors.PUSHBACK_KEY, "1500"),)
    script.answer("Generate", Failing(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=trailers))
    with pytest.raises(taskmix_client.ResourceExhaustedError) as caught:
        client.generate("p")
    assert caught.value.retry_after_s == 1.5


def test_a_server_may_forbid_repeating(client: Any, script: Script) -> None:
    handler = Failing(grpc.StatusCode.RESOURCE_EXHAUSTED, trailers=((errors.PUSHBACK_KEY, "-1"),))
    script.answer("Generate", handler)
    with pytest.raises(taskmix_client.ResourceExhaustedError) as caught:
        client.generate("p")
    assert caught.value.retry_after_s is None
    assert handler.calls == 1


def test_attempts_end(connect: Any, script: Script) -> None:
    client = connect(max_attempts=2)
    handler = Failing(grpc.StatusCode.UNAVAILABLE)
    script.answer("Generate", handler)
    with pytest.raises(taskmix_client.UnavailableError):
        client.generate("p")
    assert handler.calls == 2


def test_other_refusals_are_final(client: Any, script: Script) -> None:
    handler = Failing(grpc.StatusCode.INVALID_ARGUMENT, times=1)
    script.answer("Generate", handler)
    with pytest.raises(taskmix_client.InvalidArgumentError):
        client.generate("p")
    assert handler.calls == 1


def test_deleting_is_never_repeated(client: Any, script: Script) -> None:
    handler = Failing(grpc.StatusCode.UNAVAILABLE, times=1, answer=bank_pb2.DeleteMixResponse())
    script.answer("DeleteMix", handler)
    with pytest.raises(taskmix_client.UnavailableError):
        client.delete_mix("prod")
    assert handler.calls == 1


def test_repeatable_methods_exist() -> None:
    methods = {
        service.full_name: set(service.methods_by_name)
        for file in (
            inference_pb2.DESCRIPTOR,
            bank_pb2.DESCRIPTOR,
            admin_pb2.DESCRIPTOR,
            experiments_pb2.DESCRIPTOR,
        )
        for service in file.services_by_name.values()
    }
    assert methods.keys() == REPEATABLE.keys()
    for service, names in REPEATABLE.items():
        assert set(names) <= methods[service]


def test_a_stream_is_repeated_before_its_first_chunk_only(client: Any, script: Script) -> None:
    chunk = inference_pb2.StreamGenerateResponse(completions=ANSWER.completions)
    calls: list[int] = []

    def handler(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        calls.append(1)
        if len(calls) == 2:
            yield chunk
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    script.answer("StreamGenerate", handler)
    chunks = client.stream("p")
    assert next(chunks).text == "ok"
    with pytest.raises(taskmix_client.UnavailableError):
        next(chunks)
    assert len(calls) == 2


@pytest.mark.parametrize("where", ["call", "client"])
def test_a_deadline_ends_the_call(connect: Any, script: Script, where: str) -> None:
    released = threading.Event()
    client = connect(timeout_s=0.1) if where == "client" else connect()
    options = {"timeout_s": 0.1} if where == "call" else {}

    def handler(request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(released.set)
        released.wait()
        return ANSWER

    script.answer("Generate", handler)
    with pytest.raises(taskmix_client.DeadlineExceededError):
        client.generate("p", **options)
    assert released.wait(10)


def test_closing_a_stream_stops_the_server(client: Any, script: Script) -> None:
    stopped = threading.Event()

    def handler(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        context.add_callback(stopped.set)
        yield inference_pb2.StreamGenerateResponse(completions=ANSWER.completions)
        stopped.wait()

    script.answer("StreamGenerate", handler)
    chunks = client.stream("p")
    assert next(chunks).text == "ok"
    chunks.close()
    assert stopped.wait(10)


def test_the_key_travels_in_every_call_and_stays_out_of_the_repr(
    connect: Any, script: Script
) -> None:
    client = connect("secret")
    script.answer("Generate", lambda request, context: ANSWER)
    script.answer("ListTasks", lambda request, context: bank_pb2.ListTasksResponse())
    script.answer("StreamGenerate", lambda request, context: iter(()))
    client.generate("p")
    client.tasks()
    list(client.stream("p"))
    assert [headers["authorization"] for headers in script.headers] == ["Bearer secret"] * 3
    assert "secret" not in repr(ClientConfig("localhost:1", "secret"))


def test_without_a_key_no_header_is_sent(client: Any, script: Script) -> None:
    script.answer("ListTasks", lambda request, context: bank_pb2.ListTasksResponse())
    client.tasks()
    assert "authorization" not in script.headers[0]


def test_tls_does_not_talk_to_a_plain_server(connect: Any, script: Script) -> None:
    client = connect("secret", tls=True, max_attempts=1)
    script.answer("Generate", lambda request, context: ANSWER)
    with pytest.raises(taskmix_client.UnavailableError):
        client.generate("p")
    assert script.requests == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": ""}, "HOST:PORT"),
        ({"timeout_s": 0.0}, "timeout_s must be positive"),
        ({"timeout_s": float("inf")}, "timeout_s must be positive and finite"),
        ({"max_attempts": 0}, r"in \[1, 5\], got 0"),
        ({"max_attempts": 6}, r"in \[1, 5\], got 6"),
    ],
)
def test_a_bad_configuration_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(taskmix_client.InvalidArgumentError, match=message):
        ClientConfig(**{"target": "localhost:1", **options})
