"""The generation service over a fake engine."""

import asyncio
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Mix
from taskmix_server.database import Database
from taskmix_server.database.connection import FILENAME
from taskmix_server.domain.generation import (
    ExperimentTarget,
    FinishReason,
    GenerationRequest,
    NamedMix,
    SamplingOptions,
    Target,
)
from taskmix_server.errors import InvalidRequestError, NotFoundError, UnavailableError
from taskmix_server.runtime.mixes import NamedMixStore
from taskmix_server.services.targets import Targets
from taskmix_server.telemetry.requests import RequestRecord
from taskmix_server.tenancy.principal import DEFAULT
from tests.unit.server.conftest import Parts

MIX = Mix.parse("head:0.5+body")
ID = "a request"


def request(
    target: Target = MIX, max_tokens: int = 3, *, prompt_logprobs: bool = False
) -> GenerationRequest:
    sampling = SamplingOptions(max_tokens=max_tokens, prompt_logprobs=prompt_logprobs)
    return GenerationRequest("id", (1, 2, 3, 4), target, sampling)


async def test_a_whole_answer(parts: Parts) -> None:
    answer = await parts.inference.generate(request(), DEFAULT)
    (completion,) = answer.completions
    assert (completion.text, completion.token_ids) == ("0 1 2 ", (0, 1, 2))
    assert completion.finish_reason is FinishReason.LENGTH
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 3)
    assert answer.usage.cached_tokens == 2
    assert 0.0 <= answer.timings.ttft_s <= answer.timings.total_s
    assert answer.identity.mix_digest == parts.variants.resolve(MIX).digest
    assert Mix.parse(answer.identity.mix_json) == MIX
    assert answer.identity.bank_revision == parts.tasks.bank.revision


async def test_identity_comes_first_and_usage_last(parts: Parts) -> None:
    chunks = [chunk async for chunk in parts.inference.stream(request(), DEFAULT)]
    assert [chunk.identity is not None for chunk in chunks] == [True, False, False]
    assert [chunk.usage is not None for chunk in chunks] == [False, False, True]
    assert [chunk.timings is not None for chunk in chunks] == [False, False, True]


async def test_closing_a_stream_stops_the_work(parts: Parts) -> None:
    async with aclosing(parts.inference.stream(request(max_tokens=100), DEFAULT)) as chunks:
        await anext(chunks)
        assert (parts.engine.num_generating, parts.tasks.num_references) == (1, 2)
    assert (parts.engine.num_generating, parts.tasks.num_references) == (0, 0)


async def test_cancelling_stops_the_work(parts: Parts) -> None:
    running = asyncio.create_task(parts.inference.generate(request(max_tokens=10**6), DEFAULT))
    await parts.engine.seen["register"].wait()
    for _ in range(10):
        await asyncio.sleep(0)
    assert parts.engine.num_generating == 1
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert (parts.engine.num_generating, parts.tasks.num_references) == (0, 0)


async def test_targets(parts: Parts) -> None:
    await parts.admin.register_mix(DEFAULT, "prod", MIX, ID)
    named = await parts.inference.generate(request(NamedMix("prod")), DEFAULT)
    assert named.identity.mix_digest == parts.variants.resolve(MIX).digest
    for unknown in (NamedMix("other"), ExperimentTarget("split", "someone"), Mix.parse("late")):
        with pytest.raises(NotFoundError):
            await parts.inference.generate(request(unknown), DEFAULT)


async def test_what_a_model_name_means(parts: Parts) -> None:
    await parts.admin.register_mix(DEFAULT, "prod", MIX, ID)
    await parts.admin.register_mix(DEFAULT, "head", Mix.parse("body"), ID)
    find = partial(parts.inference.targets.find, principal=DEFAULT)
    assert await find("tiny", "tiny") == Mix()
    assert await find("base", "tiny") == Mix()
    assert await find("prod", "tiny") == NamedMix("prod")
    assert await find("head", "tiny") == NamedMix("head")
    assert await find("body:0.5", "tiny") == Mix.parse("body:0.5")
    assert await find("experiment:split", "tiny") == ExperimentTarget("split", "")
    with pytest.raises(InvalidMixError):
        await find("body:", "tiny")


@pytest.fixture
def stranded(parts: Parts, tmp_path: Path) -> Targets:
    """With a database of mixes that does not work."""
    database = Database.at(tmp_path / "gone")
    database.close()
    (tmp_path / "gone" / FILENAME).unlink()
    return replace(parts.inference.targets, mixes=NamedMixStore(database))


@pytest.mark.parametrize("mix", ["head:0.5+body:0.5", "head:1", "head+body", '{"terms": []}'])
async def test_mixes_of_one_s_own_need_no_database(stranded: Targets, mix: str) -> None:
    assert await stranded.find(mix, "tiny", DEFAULT) == Mix.parse(mix)


async def test_the_base_and_experiments_need_no_table_of_mixes(stranded: Targets) -> None:
    assert await stranded.find("base", "tiny", DEFAULT) == Mix()
    split = ExperimentTarget("split", "")
    assert await stranded.find("experiment:split", "tiny", DEFAULT) == split


@pytest.mark.parametrize("name", ["prod", "head", "nosuch", "a.b-c_d"])
async def test_what_may_be_a_registered_name_needs_the_database(
    stranded: Targets, name: str
) -> None:
    """Neither unknown nor the task of that name: what it means cannot be told."""
    with pytest.raises(UnavailableError, match="database"):
        await stranded.find(name, "tiny", DEFAULT)


async def test_prompt_log_probabilities(parts: Parts) -> None:
    with pytest.raises(InvalidRequestError, match="output head"):
        await parts.inference.generate(request(prompt_logprobs=True), DEFAULT)
    await parts.inference.generate(request(Mix.parse("body"), prompt_logprobs=True), DEFAULT)


async def test_draining_waits_for_what_is_in_flight(parts: Parts) -> None:
    async with parts.inference.observed(RequestRecord("id"), str):
        draining = asyncio.create_task(parts.inference.state.drain(grace_s=60.0))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not draining.done()
        with pytest.raises(UnavailableError, match="shutting down"):
            await parts.inference.generate(request(), DEFAULT)
    await draining


async def test_draining_ends_with_its_grace(parts: Parts) -> None:
    async with parts.inference.observed(RequestRecord("id"), str):
        await parts.inference.state.drain(grace_s=0.01)


async def test_a_dead_engine(parts: Parts) -> None:
    parts.engine.is_healthy = False
    with pytest.raises(UnavailableError, match="engine stopped"):
        await parts.inference.generate(request(), DEFAULT)


async def test_a_described_mix_loses_its_digest_with_its_task(parts: Parts) -> None:
    described = await parts.admin.register_mix(DEFAULT, "prod", MIX, ID)
    assert described.digest
    await parts.tasks.unload("head")
    assert [mix.digest for mix in await parts.admin.list_mixes(DEFAULT)] == [""]
    with pytest.raises(NotFoundError):
        await parts.admin.register_mix(DEFAULT, "other", MIX, ID)
