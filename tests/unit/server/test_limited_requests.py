"""What requests ask for, held against limits, at both edges and for loads."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from taskmix_composer.mix import Mix
from taskmix_server.domain.generation import GenerationRequest, SamplingOptions
from taskmix_server.errors import InvalidRequestError, ResourceExhaustedError
from taskmix_server.rest.app import build_app
from taskmix_server.rest.limits import ask_of, limited
from taskmix_server.rest.observed import ObservedClient
from taskmix_server.runtime.admission.admission import Ask
from taskmix_server.runtime.statuses import TaskState
from taskmix_server.telemetry.requests import RequestRecord
from taskmix_server.tenancy.authenticator import MAX_CONCURRENT_CHECKS, Authenticator
from taskmix_server.tenancy.principal import Principal
from taskmix_server.tenancy.tenant import Limits, Role, Tenant, Verb
from tests.unit.server.conftest import Parts
from tests.unit.server.secured import AUTHOR

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


@pytest.mark.parametrize(
    ("body", "num_answers"),
    [
        ({}, 1),
        ({"prompt": "x", "n": 3}, 3),
        ({"prompt": ["x", "y"], "n": 3}, 6),
        ({"prompt": [1, 2, 3]}, 1),
        ({"prompt": [[1, 2], [3]]}, 2),
        ({"prompt": []}, 1),
    ],
    ids=str,
)
def test_answers_that_a_body_asks_for(body: dict[str, Any], num_answers: int) -> None:
    assert ask_of(body) == Ask(num_answers, 0)


def test_a_body_s_priority() -> None:
    assert ask_of({"priority": -3}) == Ask(1, -3)
    with pytest.raises(InvalidRequestError, match="priority must be an integer"):
        ask_of({"priority": "first"})


@pytest.mark.parametrize(
    ("path", "body", "limit", "max_tokens"),
    [
        (COMPLETIONS, {}, None, None),
        (COMPLETIONS, {}, 10, 10),
        (COMPLETIONS, {}, 100, 16),
        (COMPLETIONS, {"max_tokens": None}, 100, 100),
        (COMPLETIONS, {"max_tokens": 7}, 10, 7),
        (COMPLETIONS, {"max_completion_tokens": 1}, 10, 10),  # vLLM would make 16
        (COMPLETIONS, {"max_completion_tokens": 4000, "max_tokens": 7}, 10, 7),
        (CHAT, {}, None, None),
        (CHAT, {}, 10, 10),
    ],
    ids=str,
)
def test_the_length_of_an_answer(
    path: str, body: dict[str, Any], limit: int | None, max_tokens: int | None
) -> None:
    seen = limited(body, path, Limits(max_output_tokens=limit))
    assert seen.get("max_tokens") == max_tokens


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"max_tokens": 11}),
        (CHAT, {"max_completion_tokens": 11}),
        (CHAT, {"max_completion_tokens": 11, "max_tokens": 2}),
        (CHAT, {"max_tokens": "11"}),
        (CHAT, {"max_tokens": 11.0}),
        (COMPLETIONS, {"max_tokens": 11}),
        (COMPLETIONS, {"max_completion_tokens": 1, "max_tokens": 11}),
    ],
    ids=str,
)
def test_answers_that_would_be_too_long(path: str, body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="max_"):
        limited(body, path, Limits(max_output_tokens=10))


@asynccontextmanager
async def edge(parts: Parts, inner: Any, limits: Limits) -> AsyncIterator[httpx.AsyncClient]:
    """The HTTP edge in front of `inner`, as a tenant with these limits sees it."""
    ops = parts.store.create(Tenant("ops", Role.ADMIN), AUTHOR)
    parts.store.update(replace(ops, limits=limits), AUTHOR)
    key = parts.store.create_key("ops", None, AUTHOR)[1].text
    parts.services.access.authenticator.is_open = False
    app: Any = build_app(inner, parts.services, parts.engine, "tiny")
    headers = {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://edge", headers=headers
    ) as http:
        yield http


@pytest.mark.parametrize("first", [b'{"prompt": "x"}', b"{", b'{"n": 0}', b'{"model": "?"}'])
async def test_a_body_is_looked_at_when_its_request_was_counted(parts: Parts, first: bytes) -> None:
    """Also one that is refused for what it says has used its tenant's rate up."""
    async with edge(parts, Inner(1), Limits(requests_per_s=1e-6)) as http:
        counted = await http.post(COMPLETIONS, content=first)
        refused = await http.post(COMPLETIONS, content=b"{")
    assert counted.status_code == (200 if b"prompt" in first else 400)
    assert refused.status_code == 429
    assert "1e-06 requests per second" in refused.json()["error"]["message"]


@dataclass
class Inner:
    """In vLLM's place: asks the engine for one answer, and makes a 500 of whatever is raised."""

    num_prompt_tokens: int
    is_asked: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        params = SimpleNamespace(max_tokens=5, n=1)
        client = ObservedClient(self)
        prompt = {"prompt_token_ids": [0] * self.num_prompt_tokens}
        try:
            async for _ in client.generate(prompt, params, "id", priority=7):
                pass
            await JSONResponse({})(scope, receive, send)
        except InvalidRequestError:
            await JSONResponse({}, 500)(scope, receive, send)

    async def generate(
        self, prompt: Any, params: Any, request_id: str, *, priority: int
    ) -> AsyncIterator[Any]:
        """The line's priority, and not the body's."""
        assert priority == 0
        self.is_asked = True
        tokens = [SimpleNamespace(index=0, token_ids=[1] * 5, finish_reason=None)]
        yield SimpleNamespace(
            prompt_token_ids=prompt["prompt_token_ids"],
            num_cached_tokens=0,
            outputs=tokens,
            finished=True,
            metrics=None,
        )


@pytest.mark.parametrize(("num_tokens", "status"), [(4, 200), (5, 400)])
async def test_a_prompt_is_counted_behind_vllm_s_app(
    parts: Parts, num_tokens: int, status: int
) -> None:
    inner = Inner(num_tokens)
    async with edge(parts, inner, Limits(max_prompt_tokens=4)) as http:
        answer = await http.post(COMPLETIONS, json={"prompt": "x", "priority": 7})
    assert answer.status_code == status
    assert inner.is_asked is (status == 200)
    if status != 200:
        error = answer.json()["error"]
        assert error["type"] == "InvalidRequestError"
        assert "max_prompt_tokens" in error["message"]
    line = parts.inference.admission.line
    assert line.num_taken == 0


async def test_grpc_requests_wait_their_turn(parts: Parts) -> None:
    """A tenant's own priorities decide which of its requests is next."""
    tenant = Principal(Tenant("t", tasks=("*",), id="t"))
    blocker = parts.inference.admission.admitted(tenant, Ask(8))
    with blocker as ticket, ticket.turn("all seats", 5, 8) as turn:
        await turn.wait(1)
        ended: list[str] = []

        async def ask(name: str, priority: int) -> None:
            sampling = SamplingOptions(max_tokens=2)
            request = GenerationRequest(name, (1, 2), Mix.parse("head"), sampling, priority)
            await parts.inference.generate(request, tenant, RequestRecord(name))
            ended.append(name)

        asking = [
            asyncio.create_task(ask(*one)) for one in (("late", 1), ("first", -1), ("middle", 0))
        ]
        for _ in range(50):  # all are in line by then
            await asyncio.sleep(0)
        assert ended == []
    await asyncio.gather(*asking)
    assert ended == ["first", "middle", "late"]
    assert parts.engine.priorities == sorted(parts.engine.priorities)


async def test_what_was_served_is_charged(parts: Parts) -> None:
    limits = Limits(tokens_per_s=1.0)
    tenant = Principal(Tenant("t", tasks=("*",), limits=limits, id="t"))
    sampling = SamplingOptions(max_tokens=6)
    request = GenerationRequest("id", (1, 2, 3), Mix.parse("head"), sampling)
    answer = await parts.inference.generate(request, tenant)
    with pytest.raises(ResourceExhaustedError) as caught:
        await parts.inference.generate(request, tenant)
    used = answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert used == 9
    assert caught.value.retry_after_s == pytest.approx(used, abs=0.2)
    counter = parts.inference.admission.line.shares.counter("t")
    assert counter == pytest.approx(used * 1.25)  # 100 bytes of deltas on a base of 400


class Loader:
    """A tenant that may load and unload, in the order of its calls."""

    def __init__(self, parts: Parts, name: str, max_bytes: int | None) -> None:
        verbs = (Verb.LOAD_TASK, Verb.UNLOAD_TASK)
        limits = Limits(max_resident_bytes=max_bytes)
        self.principal = Principal(Tenant(name, tasks=("*",), verbs=verbs, limits=limits, id=name))
        self._admin = parts.admin

    async def load(self, task: str) -> None:
        await self._admin.load_task(self.principal, task, "id")

    async def unload(self, task: str) -> None:
        await self._admin.unload_task(self.principal, task, "id")


async def test_bytes_of_loaded_tasks(parts: Parts) -> None:
    """A task takes 100 bytes in the engine, and before it is there what the bank says."""
    stored = parts.tasks.status("late").num_bytes
    assert stored == parts.tasks.status("body").num_bytes
    careful, free = Loader(parts, "careful", stored + 99), Loader(parts, "free", None)
    await careful.load("body")  # was there before: nobody's
    await careful.load("late")
    await careful.unload("body")
    with pytest.raises(ResourceExhaustedError, match="max_resident_bytes") as caught:
        await careful.load("body")
    assert caught.value.reason == "memory"
    await free.load("body")
    await careful.load("body")  # is there, and another's
    await free.unload("late")
    await careful.unload("body")
    await careful.load("body")


async def test_a_task_that_turns_out_too_large_is_unloaded_again(parts: Parts) -> None:
    stored = parts.tasks.status("late").num_bytes
    parts.engine.num_task_bytes = stored + 1
    with pytest.raises(ResourceExhaustedError, match=f"takes {stored + 1} bytes"):
        await Loader(parts, "careful", stored).load("late")
    assert parts.tasks.status("late").state is TaskState.ON_DISK


async def test_requests_that_come_together_verify_a_key_once(parts: Parts) -> None:
    """Each check takes a core for some 50 ms: with a flood of them nobody else would be served."""
    parts.store.create(Tenant("ops", Role.ADMIN), AUTHOR)
    key = parts.store.create_key("ops", None, AUTHOR)[1].text
    authenticator = Authenticator(parts.store)
    principals = await asyncio.gather(*(authenticator.principal(key) for _ in range(20)))
    assert len({id(principal) for principal in principals}) <= MAX_CONCURRENT_CHECKS
