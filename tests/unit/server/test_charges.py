"""One count of tokens: a tenant's bucket, its fairness counter and `/metrics` are given the same,
for bodies with several prompts and several answers to each."""

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from taskmix_server.rest.app import build_app
from taskmix_server.rest.observed import ObservedClient
from taskmix_server.tenancy.tenant import Limits, Role, Tenant
from tests.unit.server.conftest import Parts
from tests.unit.server.secured import AUTHOR

RATE = 0.001  # a tenth of a token in the longest test
WEIGHT = 2.0
HEAD_COST = 1.25  # of a token under `head`: 100 bytes of deltas on a base of 400
LENGTHS = ((4, 2), (1, 3))
"""Tokens of each answer, by prompt and then by answer."""

Bodies = list[tuple[dict[str, Any], int, int]]
BODIES: Bodies = [
    ({"prompt": "abc"}, 3, 4),
    ({"prompt": "abc", "n": 2}, 3, 6),
    ({"prompt": ["abc", "x"]}, 4, 5),
    ({"prompt": ["abc", "x"], "n": 2}, 4, 10),
]
"""What is asked for, and how many tokens its prompts and its answers have."""


class Inner:
    """In vLLM's place: asks the engine for all prompts of a body at once, a token per letter."""

    def __init__(self, *, is_stream: bool) -> None:
        self._is_stream = is_stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).json()
        prompts = [body["prompt"]] if isinstance(body["prompt"], str) else body["prompt"]
        params = SimpleNamespace(max_tokens=9, n=body.get("n", 1), structured_outputs=None)
        asked = (self._ask(number, len(text), params) for number, text in enumerate(prompts))
        await asyncio.gather(*asked)
        await JSONResponse({})(scope, receive, send)

    async def _ask(self, number: int, num_tokens: int, params: Any) -> None:
        prompt = {"prompt_token_ids": [0] * num_tokens}
        async for _ in ObservedClient(self).generate(prompt, params, f"id-{number}"):
            pass

    async def generate(
        self, prompt: Any, params: Any, request_id: str, *, priority: int
    ) -> AsyncIterator[Any]:
        """Streams give a token at a time, of each answer in turn; whole answers come at once."""
        lengths = LENGTHS[int(request_id.removeprefix("id-"))][: params.n]
        steps = [1] * max(lengths) if self._is_stream else [max(lengths)]
        for step, width in enumerate(steps):
            await asyncio.sleep(0)
            pieces = [
                SimpleNamespace(
                    index=index,
                    token_ids=[1] * min(width, length - step),
                    finish_reason="stop" if step + width >= length else None,
                )
                for index, length in enumerate(lengths)
                if step < length
            ]
            yield SimpleNamespace(
                prompt_token_ids=prompt["prompt_token_ids"],
                num_cached_tokens=0,
                outputs=pieces,
                finished=step + 1 == len(steps),
                metrics=None,
            )


@pytest.fixture
def user(parts: Parts) -> Tenant:
    """A tenant whose bucket fills slowly, beside the admin that there must be."""
    parts.store.create(Tenant("ops", Role.ADMIN), AUTHOR)
    limits = Limits(tokens_per_s=RATE, weight=WEIGHT)
    created = parts.store.create(Tenant("user", tasks=("head",), limits=limits), AUTHOR)
    parts.services.access.authenticator.is_open = False
    return created


def assert_charged(parts: Parts, user: Tenant, num_prompt: int, num_output: int) -> None:
    """The three of them have counted so many tokens, and no seat is taken any more."""
    labels = {"mix": "head", "tenant": "user"}
    for name, expected in (("prompt", num_prompt), ("output", num_output)):
        seen = parts.registry.get_sample_value(f"taskmix_{name}_tokens_total", labels)
        assert seen == expected, name
    admission, num_tokens = parts.inference.admission, num_prompt + num_output
    owed = RATE * admission._usages[user.id].tokens.wait_s(RATE)
    assert owed == pytest.approx(num_tokens, abs=0.1)  # it held one, and one is needed
    counter = admission.line.shares.counter(user.id)
    assert counter == pytest.approx(num_tokens * HEAD_COST / WEIGHT)
    assert admission.line.num_taken == 0


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(("body", "num_prompt", "num_output"), BODIES, ids=str)
async def test_bodies_of_prompts_and_answers(
    parts: Parts,
    user: Tenant,
    body: dict[str, Any],
    num_prompt: int,
    num_output: int,
    *,
    is_stream: bool,
) -> None:
    key = parts.store.create_key("user", None, AUTHOR)[1].text
    inner = Inner(is_stream=is_stream)
    app: Any = build_app(inner, parts.services, parts.engine, "tiny")  # type: ignore[arg-type]
    headers = {"authorization": f"Bearer {key}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://edge", headers=headers
    ) as http:
        answer = await http.post("/v1/completions", json={"model": "head", **body})
        assert answer.status_code == 200, answer.text
        assert_charged(parts, user, num_prompt, num_output)
        refused = await http.post("/v1/completions", json={"model": "head", **body})
    assert refused.status_code == 429
    told = RATE * int(refused.headers["retry-after"])
    assert told == pytest.approx(num_prompt + num_output, abs=0.1)
