"""Merge methods named by requests: expanded over the served bank, answered as terms."""

import json
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse

from taskmix.v1 import common_pb2
from taskmix_client import AsyncClient
from taskmix_composer.bank import Bank
from taskmix_composer.build import add_task, remove_task
from taskmix_composer.errors import InvalidMixError, MissingGramError, UnknownTaskError
from taskmix_composer.mix import Mix
from taskmix_composer.recipe import Recipe, expanded
from taskmix_server.domain.generation import GenerationRequest, NamedMix, SamplingOptions, Target
from taskmix_server.errors import FailedPreconditionError, NotFoundError
from taskmix_server.rest.app import build_app
from taskmix_server.rpc import convert
from taskmix_server.rpc.server import GrpcEdge
from taskmix_server.tenancy.principal import DEFAULT
from tests.unit.composer.models import make_weights, save_model, tuned
from tests.unit.server.conftest import Parts

ID = "a request"
METAGPT = Recipe("metagpt", ("head", "body"))
AVERAGE = Recipe("average", ("head", "body"))
HALVES = Mix.of({"head": 0.5, "body": 0.5})
WRITTEN = {"method": "metagpt", "tasks": ["body", "head"]}


def request(target: Target) -> GenerationRequest:
    return GenerationRequest("id", (1, 2), target, SamplingOptions(max_tokens=1))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """The revision of each bank whose table was read, and whether the event loop waited."""
    seen: list[tuple[str, bool]] = []
    read = Bank.read_gram

    def noted(bank: Bank) -> Any:
        seen.append((bank.revision, threading.current_thread() is threading.main_thread()))
        return read(bank)

    monkeypatch.setattr(Bank, "read_gram", noted)
    return seen


async def test_answers_name_terms(parts: Parts) -> None:
    mix = expanded(METAGPT, parts.tasks.bank)
    weights = [term.coefficient for term in mix.terms]
    assert sum(weights) == pytest.approx(1.0)
    assert weights[0] != pytest.approx(weights[1])
    answer = await parts.inference.generate(request(METAGPT), DEFAULT)
    assert answer.identity.mix_json == mix.canonical_json()
    assert answer.identity.mix_digest == parts.variants.resolve(mix).digest
    again = await parts.inference.generate(request(Mix.parse(answer.identity.mix_json)), DEFAULT)
    assert again.identity.mix_digest == answer.identity.mix_digest
    assert len(parts.engine.variants) == 1


async def test_a_registered_name_keeps_its_terms(parts: Parts) -> None:
    mix = expanded(METAGPT, parts.tasks.bank)
    described = await parts.admin.register_mix(DEFAULT, "prod", METAGPT, ID)
    assert described.record.mix == mix
    assert described.digest == parts.variants.resolve(mix).digest
    change(parts, "body")
    await parts.tasks.load("body")
    assert expanded(METAGPT, parts.tasks.bank) != mix
    answer = await parts.inference.generate(request(NamedMix("prod")), DEFAULT)
    assert answer.identity.mix_json == mix.canonical_json()


async def test_the_table_is_read_once_per_revision(
    parts: Parts, reads: list[tuple[str, bool]]
) -> None:
    for _ in range(3):
        await parts.recipes.expand(METAGPT)
        await parts.recipes.expand(HALVES)
    assert reads == [(parts.tasks.bank.revision, False)]
    change(parts, "body")
    reads.clear()
    await parts.tasks.load("body")
    assert await parts.recipes.expand(METAGPT) == await parts.recipes.expand(METAGPT)
    assert reads == [(parts.tasks.bank.revision, False)]


async def test_plain_mixes_read_no_table(parts: Parts, reads: list[tuple[str, bool]]) -> None:
    assert await parts.recipes.expand(HALVES) is HALVES
    assert reads == []


async def test_content_other_than_what_was_measured(parts: Parts) -> None:
    change(parts, "body")
    await parts.tasks.load("late")
    with pytest.raises(FailedPreconditionError, match=r"'body'.*taskmix tasks load body"):
        await parts.recipes.expand(METAGPT)
    assert await parts.recipes.expand(AVERAGE) == HALVES
    await parts.tasks.load("body")
    assert await parts.recipes.expand(METAGPT) == expanded(METAGPT, parts.tasks.bank)


@pytest.mark.parametrize(
    ("task", "error"), [("late", NotFoundError), ("law", UnknownTaskError)], ids=str
)
@pytest.mark.parametrize("method", ["average", "metagpt"])
async def test_tasks_that_are_not_served(
    parts: Parts, method: str, task: str, error: type[Exception]
) -> None:
    with pytest.raises(error, match=task):
        await parts.inference.generate(request(Recipe(method, ("body", task))), DEFAULT)
    with pytest.raises(error, match=task):
        await parts.admin.register_mix(DEFAULT, "prod", Recipe(method, ("body", task)), ID)
    assert await parts.admin.list_mixes(DEFAULT) == []


async def test_a_bank_without_a_table(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bank, "read_gram", lambda bank: None)
    with pytest.raises(MissingGramError, match="bank recode"):
        await parts.inference.generate(request(METAGPT), DEFAULT)
    assert await parts.recipes.expand(AVERAGE) == HALVES


async def test_a_model_name_may_be_a_method(parts: Parts) -> None:
    find = partial(parts.inference.targets.find, principal=DEFAULT)
    assert await find(json.dumps(WRITTEN), "tiny") == METAGPT
    with pytest.raises(InvalidMixError, match="bank merge"):
        await find('{"method": "ties", "tasks": ["body"]}', "tiny")


def test_messages() -> None:
    assert convert.to_mix(common_pb2.Mix(expression=json.dumps(WRITTEN))) == METAGPT


async def test_the_http_edge(parts: Parts) -> None:
    app: Any = build_app(JSONResponse({}), parts.services, parts.engine, "tiny")
    digest = parts.variants.resolve(expanded(METAGPT, parts.tasks.bank)).digest
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://edge") as http:
        for body in ({"task_mix": WRITTEN}, {"model": json.dumps(WRITTEN)}):
            response = await http.post("/v1/completions", json={"prompt": "x", **body})
            assert response.headers["x-taskmix-digest"] == digest
        refused = {"task_mix": {"method": "ties", "tasks": ["body"]}}
        response = await http.post("/v1/completions", json=refused)
        assert response.status_code == 400
        assert "bank merge" in response.json()["error"]["message"]


@pytest.fixture
async def client(parts: Parts) -> AsyncIterator[AsyncClient]:
    edge = GrpcEdge(parts.services)
    port = await edge.start("127.0.0.1", 0)
    async with AsyncClient(f"127.0.0.1:{port}", timeout_s=20, max_attempts=1) as opened:
        yield opened
    await edge.stop(0.0)


async def test_the_grpc_edge(parts: Parts, client: AsyncClient) -> None:
    mix = expanded(METAGPT, parts.tasks.bank)
    answer = await client.generate([1, 2], mix=WRITTEN, max_tokens=1)
    assert answer.mix == mix.canonical_json()
    named = await client.register_mix("prod", WRITTEN)
    assert (named.mix, named.mix_digest) == (answer.mix, answer.mix_digest)


def change(parts: Parts, name: str) -> None:
    """Put a longer task vector under a name in the bank directory."""
    remove_task(parts.bank, name)
    source = save_model(parts.bank.parent / f"new-{name}", tuned(make_weights(), seed=7, size=0.5))
    add_task(parts.bank, parts.base, name, source)
