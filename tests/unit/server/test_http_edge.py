"""The HTTP edge's own part: bodies, names, headers and refusals, in front of an echoing app."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from taskmix_server import errors
from taskmix_server.domain.limits import MAX_REQUEST_BYTES
from taskmix_server.rest import body as request_body
from taskmix_server.rest.app import build_app
from taskmix_server.rest.body import parse_body, read_body
from taskmix_server.rest.generation import wants_prompt_logprobs
from taskmix_server.rest.models import RESOLVED
from tests.unit.server.conftest import Parts


class Inner:
    """In vLLM's place: tells what reached it, or fails before or after its answer."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.late_failure: Exception | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.failure is not None:
            raise self.failure
        request = Request(scope, receive)
        resolved = RESOLVED.get()
        length = int(request.headers["content-length"])
        seen = {"name": resolved.name, "carrier": resolved.lora_request, "length": length}
        response = JSONResponse({**seen, "body": await request.json()})
        await response(scope, receive, send)
        if self.late_failure is not None:
            raise self.late_failure


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.fixture
async def http(parts: Parts, inner: Inner) -> AsyncIterator[httpx.AsyncClient]:
    app: Any = build_app(inner, parts.services, parts.engine, "tiny")  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as client:
        yield client


async def ask(http: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await http.post("/v1/completions", json=body)


async def test_vllm_sees_the_resolved_mix_and_its_own_fields(
    http: httpx.AsyncClient, parts: Parts
) -> None:
    response = await ask(
        http, model="head:0.5", prompt="é", cache_salt="s", priority=3, temperature=0.5
    )
    seen = response.json()
    assert seen["body"] == {"model": "head:0.5", "prompt": "é", "temperature": 0.5}
    assert seen["length"] == len(json.dumps(seen["body"]).encode())
    assert seen["name"] == "head:0.5"
    (digest,) = parts.engine.variants
    assert seen["carrier"] == response.headers["x-taskmix-digest"] == digest
    assert response.headers["x-taskmix-bank"] == parts.tasks.bank.revision
    assert parts.tasks.num_references == 0


async def test_the_base_has_no_carrier(http: httpx.AsyncClient) -> None:
    for body in ({}, {"model": None}, {"model": ""}, {"model": "tiny"}, {"model": "body:0"}):
        response = await ask(http, **body)
        assert response.json()["carrier"] is None
        assert response.json()["body"]["model"] == (body.get("model") or "tiny")


async def test_a_structured_mix_wins_over_the_name(http: httpx.AsyncClient, parts: Parts) -> None:
    mix = {"terms": [{"task": "body", "coefficient": 0.5}]}
    seen = (await ask(http, model="head", task_mix=mix)).json()
    assert [str(variant.mix) for variant in parts.engine.variants.values()] == ["body:0.5"]
    assert seen["body"] == {"model": "head"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.InvalidRequestError("no"), 400),
        (errors.UnavailableError("no"), 503),
        (errors.ResourceExhaustedError("no", 3.0), 429),
    ],
)
async def test_errors_behind_the_edge(
    http: httpx.AsyncClient, inner: Inner, error: Exception, status: int
) -> None:
    inner.failure = error
    response = await ask(http, prompt="x")
    assert response.status_code == status
    assert response.json()["error"] == {
        "message": "no",
        "type": type(error).__name__,
        "param": None,
        "code": status,
    }
    assert response.headers.get("retry-after") == ("3" if status == 429 else None)


async def test_our_bugs_tell_an_id_and_nothing_else(
    http: httpx.AsyncClient, inner: Inner, caplog: pytest.LogCaptureFixture
) -> None:
    inner.failure = RuntimeError("secret")
    response = await ask(http, model="head", prompt="x")
    assert response.status_code == 500
    message = response.json()["error"]["message"]
    found = re.fullmatch(r"internal error \(request ([0-9a-f]{32})\)", message)
    assert found is not None
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert any(found[1] in record.message for record in logged)
    assert "secret" in caplog.text


async def test_an_answer_that_was_begun_is_not_begun_again(
    http: httpx.AsyncClient, inner: Inner
) -> None:
    inner.late_failure = RuntimeError("vLLM raises again what it has answered")
    assert (await ask(http, prompt="x")).status_code == 200


async def test_draining(http: httpx.AsyncClient, parts: Parts) -> None:
    assert (await http.get("/readyz")).status_code == 200
    await parts.inference.state.drain(grace_s=1.0)
    assert (await http.get("/readyz")).status_code == 503
    assert (await http.get("/healthz")).status_code == 200
    assert (await ask(http, prompt="x")).status_code == 503


async def test_a_dead_engine_is_not_ready(http: httpx.AsyncClient, parts: Parts) -> None:
    parts.engine.is_healthy = False
    assert (await http.get("/readyz")).status_code == 503
    assert (await ask(http, prompt="x")).status_code == 503


async def test_models(http: httpx.AsyncClient, parts: Parts) -> None:
    listed = (await http.get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"]) for card in listed] == [
        ("tiny", None),
        ("body", "tiny"),
        ("head", "tiny"),
    ]


async def test_size_of_a_body(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/completions", content=b" " * (MAX_REQUEST_BYTES + 1))
    assert response.status_code == 400
    assert str(MAX_REQUEST_BYTES) in response.json()["error"]["message"]


async def test_a_body_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "BODY_S", 0.01)
    pieces = [{"type": "http.request", "body": b"{", "more_body": True}]

    async def receive() -> Any:
        return pieces.pop() if pieces else await asyncio.get_running_loop().create_future()

    with pytest.raises(errors.DeadlineExceededError, match="body"):
        await read_body(receive)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"1",
        b"\xff",
        '{"a": 1}'.encode("utf-16"),
        b"[" * 10**4,
        b'{"a": NaN}',
        b'{"a": 1e999}',
    ],
    ids=lambda raw: repr(raw)[:20],
)
def test_bodies_that_are_not_json_objects(raw: bytes) -> None:
    with pytest.raises(errors.InvalidRequestError, match="body"):
        parse_body(raw)


@pytest.mark.parametrize(
    ("body", "wants"),
    [
        ({}, False),
        ({"logprobs": 5}, False),
        ({"echo": True}, False),
        ({"echo": False, "logprobs": 5}, False),
        ({"prompt_logprobs": None}, False),
        ({"prompt_logprobs": 0}, True),
        ({"echo": True, "logprobs": 0}, True),
        ({"echo": True, "logprobs": None}, False),
    ],
    ids=str,
)
def test_who_wants_prompt_log_probabilities(body: dict[str, Any], wants: bool) -> None:
    assert wants_prompt_logprobs(body) is wants


@pytest.mark.parametrize("n", [0, -1, 129, 2**62, "2", 1.5, [1]])
async def test_n(http: httpx.AsyncClient, n: Any) -> None:
    response = await ask(http, prompt="x", n=n)
    assert response.status_code == 400
    assert "n must be an integer in [1, 128]" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "field",
    [{"top_k": 2**63}, {"logit_bias": {"1": -(2**63) - 1}}, {"n": 10**30}, {"x": [[10**4000]]}],
    ids=lambda field: repr(field)[:30],
)
async def test_integers_that_are_too_large(http: httpx.AsyncClient, field: Any) -> None:
    response = await ask(http, prompt="x", **field)
    assert response.status_code == 400
    assert "at most 64 bits" in response.json()["error"]["message"]
    for seed in (2**63 - 1, -(2**63)):
        assert (await ask(http, prompt="x", seed=seed)).status_code == 200


@pytest.mark.parametrize("model", [5, ["a"], {"terms": []}, True])
async def test_a_model_is_named_by_a_string(http: httpx.AsyncClient, model: Any) -> None:
    assert (await ask(http, prompt="x", model=model)).status_code == 400


async def test_a_scrape_reads_what_deltas_take_now(http: httpx.AsyncClient, parts: Parts) -> None:
    assert (await http.get("/metrics")).status_code == 200
    assert parts.tasks.memory.last.tasks == 200
    await parts.tasks.unload("head")
    await http.get("/metrics")
    assert parts.tasks.memory.last.tasks == 100
