"""What both edges record of a request, over a fake engine."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Message, Receive, Scope, Send

from taskmix_client import AsyncClient, TaskMixError, UnauthenticatedError
from taskmix_composer.mix import Mix
from taskmix_server.domain.generation import GenerationRequest, NamedMix, Target
from taskmix_server.errors import UnavailableError
from taskmix_server.rest.app import build_app
from taskmix_server.rest.observed import ObservedClient
from taskmix_server.rpc.server import GrpcEdge
from taskmix_server.services.services import Services
from taskmix_server.services.targets import mix_label
from taskmix_server.telemetry.requests import Phases, RequestRecord
from taskmix_server.tenancy.audit import Author
from taskmix_server.tenancy.principal import DEFAULT
from taskmix_server.tenancy.tenant import Role, Tenant
from tests.unit.server.conftest import Parts, with_access

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
STATS = SimpleNamespace(queued_ts=1.0, scheduled_ts=2.0, first_token_ts=3.0, last_token_ts=5.0)


@dataclass(frozen=True)
class Params:
    """In place of vLLM's sampling parameters: the new tokens of each output."""

    counts: tuple[int, ...]
    max_tokens: int = 16
    n: int = 1


class Client:
    """In vLLM's place: outputs as its engine client gives them."""

    model = "tiny"

    async def generate(
        self, prompt: Any, params: "Params", request_id: str, *, priority: int
    ) -> AsyncGenerator[Any]:
        """An output for each count of new tokens, over a prompt of 4 tokens with 3 cached."""
        for number, count in enumerate(params.counts, start=1):
            yield SimpleNamespace(
                prompt_token_ids=[0] * 4,
                num_cached_tokens=3,
                outputs=[SimpleNamespace(index=0, token_ids=[0] * count, finish_reason="stop")],
                finished=number == len(params.counts),
                metrics=STATS,
            )


@dataclass
class App:
    """In place of vLLM's app: asks the client for one prompt after another, then answers."""

    prompts: list[tuple[int, ...]] = field(default_factory=lambda: [(1, 2)])
    status: int = 200
    failure: Exception | None = None
    scope: Scope = field(default_factory=dict)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        if self.failure is not None:
            raise self.failure
        client = ObservedClient(Client())
        assert client.model == "tiny"
        for number, counts in enumerate(self.prompts):
            params = Params(counts)
            async for _ in client.generate({"prompt_token_ids": [0] * 4}, params, str(number)):
                pass
        await JSONResponse({}, self.status)(scope, receive, send)


@pytest.fixture
def records() -> list[RequestRecord]:
    return []


@pytest.fixture
def services(parts: Parts, records: list[RequestRecord]) -> Services:
    inference = replace(parts.inference, report=records.append)
    return with_access(inference, parts.admin, parts.experiments, parts.audit, parts.store)


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
async def http(parts: Parts, services: Services, app: App) -> AsyncIterator[httpx.AsyncClient]:
    built: Any = build_app(app, services, parts.engine, "tiny")  # type: ignore[arg-type]
    transport = httpx.ASGITransport(built)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        yield client


@pytest.fixture
async def grpc(services: Services) -> AsyncIterator[AsyncClient]:
    edge = GrpcEdge(services)
    port = await edge.start("127.0.0.1", 0)
    async with AsyncClient(f"127.0.0.1:{port}", timeout_s=20, max_attempts=1) as opened:
        yield opened
    await edge.stop(0.0)


async def complete(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    headers = {"traceparent": TRACEPARENT, "tracestate": "a=b", "x-request-id": "mine"}
    return await http.post("/v1/completions", json=body, headers=headers)


async def test_grpc(grpc: AsyncClient, records: list[RequestRecord]) -> None:
    answer = await grpc.generate("abcde", mix="head", max_tokens=3)
    (record,) = records
    assert (record.edge, record.tenant, record.mix) == ("grpc", "default", "head")
    assert (record.error, record.status) == ("", "OK")
    assert (record.digest, record.tasks) == (answer.mix_digest, ("head",))
    tokens = record.num_prompt_tokens, record.num_cached_tokens, record.num_output_tokens
    assert tokens == (5, 2, 3)
    assert record.request_id == answer.request_id
    assert 0.0 < (record.ttft_s or 0.0) <= record.duration_s


async def test_a_grpc_stream(grpc: AsyncClient, records: list[RequestRecord]) -> None:
    chunks = [chunk async for chunk in grpc.stream("abcde", mix="base", max_tokens=3)]
    (record,) = records
    assert (record.mix, record.num_output_tokens, record.status) == ("base", 3, "OK")
    timings = chunks[-1].timings
    assert timings is not None
    assert timings.ttft_s == record.ttft_s


@pytest.mark.parametrize(
    ("mix", "error", "status"),
    [("head:", "InvalidMixError", "INVALID_ARGUMENT"), ("late", "NotFoundError", "NOT_FOUND")],
)
async def test_grpc_refusals(
    grpc: AsyncClient, records: list[RequestRecord], mix: str, error: str, status: str
) -> None:
    with pytest.raises(TaskMixError):
        await grpc.generate("x", mix=mix)
    (record,) = records
    assert (record.error, record.status, record.resolved_s) == (error, status, None)


async def test_bugs(grpc: AsyncClient, parts: Parts, records: list[RequestRecord]) -> None:
    parts.engine.failure = KeyError("secret")
    with pytest.raises(TaskMixError):
        await grpc.generate("x", mix="head")
    assert [(record.error, record.status) for record in records] == [("KeyError", "INTERNAL")]


@pytest.mark.parametrize(("timeout_s", "status"), [(0.2, "DEADLINE_EXCEEDED"), (20.0, "CANCELLED")])
async def test_grpc_callers_who_leave(
    grpc: AsyncClient, parts: Parts, records: list[RequestRecord], timeout_s: float, status: str
) -> None:
    parts.engine.blocked = {"register"}
    running = asyncio.create_task(grpc.generate("x", mix="head", timeout_s=timeout_s))
    await parts.engine.seen["register"].wait()
    if status == "CANCELLED":
        running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    async with asyncio.timeout(10):
        while not records:  # noqa: ASYNC110 - the server notices after the client
            await asyncio.sleep(0)
    parts.engine.gate.set()
    assert [(record.error, record.status) for record in records] == [("CancelledError", status)]


async def test_http(http: httpx.AsyncClient, app: App, records: list[RequestRecord]) -> None:
    response = await complete(http, model="head:0.5", prompt="x")
    (record,) = records
    assert (record.edge, record.tenant, record.mix) == ("http", "default", "inline")
    assert (record.error, record.status) == ("", "200")
    assert (record.digest, record.tasks) == (response.headers["x-taskmix-digest"], ("head",))
    tokens = record.num_prompt_tokens, record.num_cached_tokens, record.num_output_tokens
    assert tokens == (4, 3, 3)
    (run,) = record.runs
    assert run.phases == Phases(1.0, 2.0, 3.0, 5.0)
    assert run.first_token_s != 3.0


async def test_a_whole_http_answer_of_many_prompts(
    http: httpx.AsyncClient, app: App, records: list[RequestRecord]
) -> None:
    app.prompts = [(9,), (5,)]
    await complete(http, model="head", prompt=["x", "y"])
    (record,) = records
    assert (record.mix, record.num_prompt_tokens, record.num_output_tokens) == ("head", 8, 14)
    assert [run.first_token_s for run in record.runs] == [3.0, 3.0]
    assert [run.inter_token_s for run in record.runs] == [2.0 / 8, 2.0 / 4]


async def test_vllm_sees_our_id_and_no_trace(
    http: httpx.AsyncClient, app: App, records: list[RequestRecord]
) -> None:
    await complete(http, prompt="x")
    headers = dict(app.scope["headers"])
    assert headers[b"x-request-id"].decode() == records[0].request_id
    assert headers.keys().isdisjoint({b"traceparent", b"tracestate"})
    assert records[0].carrier == {"traceparent": TRACEPARENT, "tracestate": "a=b"}


@pytest.mark.parametrize(
    ("model", "error", "status"),
    [("head:", "InvalidMixError", "400"), ("late", "NotFoundError", "404")],
)
async def test_http_refusals(
    http: httpx.AsyncClient, records: list[RequestRecord], model: str, error: str, status: str
) -> None:
    response = await complete(http, model=model, prompt="x")
    (record,) = records
    assert (record.error, record.status) == (error, status) == (error, str(response.status_code))


async def test_what_vllm_refuses_itself(
    http: httpx.AsyncClient, app: App, records: list[RequestRecord]
) -> None:
    app.prompts, app.status = [], 400
    await complete(http, prompt="x")
    assert [(record.error, record.status) for record in records] == [("HTTP 400", "400")]


async def test_errors_behind_the_http_edge(
    http: httpx.AsyncClient, app: App, records: list[RequestRecord]
) -> None:
    for app.failure in (UnavailableError("no"), KeyError("secret")):
        await complete(http, prompt="x")
    seen = [(record.error, record.status) for record in records]
    assert seen == [("UnavailableError", "503"), ("KeyError", "500")]


@pytest.mark.parametrize("has_answer", [False, True])
async def test_an_http_caller_who_leaves(
    parts: Parts, services: Services, records: list[RequestRecord], has_answer: bool
) -> None:
    async def notices(scope: Scope, receive: Receive, send: Send) -> None:
        """Reads the body, then the disconnect; vLLM's app answers nobody in some of its routes."""
        await receive()
        assert (await receive())["type"] == "http.disconnect"
        if has_answer:
            await JSONResponse(None)(scope, receive, send)

    built: Any = build_app(notices, services, parts.engine, "tiny")  # type: ignore[arg-type]
    incoming: list[Message] = [
        {"type": "http.request", "body": b'{"prompt": "x"}', "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return incoming.pop(0)

    async def send(message: Message) -> None:
        """Nobody reads it."""

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await built(scope, receive, send)
    assert [(record.error, record.status) for record in records] == [("CancelledError", "499")]


@pytest.mark.parametrize(
    ("target", "mix", "label"),
    [
        (Mix(), "base", "base"),
        (Mix.parse("law"), "law", "law"),
        (Mix.parse("law:0.5"), "law:0.5", "inline"),
        (Mix.parse("law+code"), "law+code", "inline"),
        (NamedMix("prod"), "law:0.5", "prod"),
        (NamedMix("nothing"), "base", "nothing"),
    ],
    ids=str,
)
def test_labels(target: Target, mix: str, label: str) -> None:
    assert mix_label(target, Mix.parse(mix)) == label


async def test_loads_are_told(parts: Parts) -> None:
    told: list[tuple[str, str, bool]] = []
    parts.tasks.residency.after_load = lambda task, outcome, seconds: told.append(
        (task, outcome, seconds >= 0.0)
    )
    await parts.tasks.load("late")
    await parts.tasks.load("late")  # its content is there
    await parts.tasks.unload("late")
    parts.engine.failure = UnavailableError("no")
    with pytest.raises(UnavailableError):
        await parts.tasks.load("late")
    assert told == [("late", "ok", True), ("late", "failed", True)]


async def test_a_record_is_not_needed(parts: Parts) -> None:
    request = GenerationRequest("an id", "x", Mix.parse("head"))
    assert (await parts.inference.generate(request, DEFAULT)).timings.total_s > 0.0


async def test_who_is_turned_away_is_told_by_both_edges(parts: Parts) -> None:
    parts.store.create(Tenant("bob", Role.ADMIN), Author("ops", "0123456789ab", "a request"))
    told: list[str] = []
    inner = with_access(
        parts.inference, parts.admin, parts.experiments, parts.audit, parts.store, told.append
    )
    built: Any = build_app(App(), inner, parts.engine, "tiny")  # type: ignore[arg-type]
    transport = httpx.ASGITransport(built)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        assert (await client.get("/v1/models")).status_code == 401
    edge = GrpcEdge(inner)
    port = await edge.start("127.0.0.1", 0)
    async with AsyncClient(f"127.0.0.1:{port}", timeout_s=20, max_attempts=1) as caller:
        with pytest.raises(UnauthenticatedError):
            await caller.generate("x")
    await edge.stop(0.0)
    assert told == ["UnauthenticatedError", "UnauthenticatedError"]
