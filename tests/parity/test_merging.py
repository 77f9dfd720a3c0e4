"""A mix that has batches to itself is merged when that pays, and answers as before."""

import json
from collections.abc import Iterator
from dataclasses import asdict

import pytest
import torch

from taskmix_composer.build import add_task, build_bank
from taskmix_composer.forms import Forms
from taskmix_composer.mix import BASE_MIX, Mix
from taskmix_server.engine.vllm.costs import Costs, machine
from tests.support.inprocess import InProcessEngine
from tests.support.parity import Oracle, prompt_of
from tests.support.tiny import TinyModel, make_base, make_finetune

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]

SCHEMES = {"packed": "int4(group=32)", "dense": "dense", "rank": "lowrank(rank=8)"}
MIX = Mix.parse("packed:0.7+dense:-0.4+rank:0.5")
OTHER = Mix.parse("packed:-0.2+dense:0.9")
PROMPTS = [prompt_of(7 + 9 * index, seed=index) for index in range(3)]
CACHE_BYTES = 2**28

# Merging costs nothing, so that the first step that a mix has to itself merges it.
FREE = Costs(read=1.0, row=1.0, decode=0.0, install=0.0)


@pytest.fixture(scope="module", params=["tied", "untied"])
def oracle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    folder = tmp_path_factory.mktemp("merging")
    shape = TinyModel(biased=True, tied=request.param == "tied", num_layers=2)
    base = make_base(folder / "base", shape)
    tuned = {
        name: make_finetune(base, folder / name, seed=seed) for seed, name in enumerate(SCHEMES)
    }
    bank, (first, *others) = folder / "bank", SCHEMES
    build_bank(base, {first: tuned[first]}, Forms.parse(SCHEMES[first]), bank)
    for name in others:
        add_task(bank, base, name, tuned[name], Forms.parse(SCHEMES[name]))
    (folder / "merged").mkdir()
    return Oracle(base, bank, folder / "merged", models={})


def engine_of(oracle: Oracle, cache_bytes: int, costs: Costs = FREE) -> InProcessEngine:
    path = oracle.folder / "costs.json"
    path.write_text(json.dumps({machine(torch.float32): asdict(costs)}))
    engine = InProcessEngine(
        oracle.base,
        oracle.bank,
        dtype="float32",
        max_num_seqs=4,
        max_model_len=256,
        kv_cache_memory_bytes=2**26,
        delta_cache_bytes=cache_bytes,
        cost_cache=path,
    )
    engine.load(*SCHEMES)
    return engine


@pytest.fixture
def engine(oracle: Oracle) -> Iterator[InProcessEngine]:
    engine = engine_of(oracle, CACHE_BYTES)
    yield engine
    engine.close()


def test_a_merged_mix_answers_as_its_merged_checkpoint(
    engine: InProcessEngine, oracle: Oracle
) -> None:
    oracle.check(engine, [MIX] * 3, PROMPTS)
    merged = engine.memory()
    assert merged.merges == 1
    assert merged.steps_merged > 0
    assert merged.cache > 0
    oracle.check(engine, [MIX, BASE_MIX, OTHER], PROMPTS)
    after = engine.memory()
    assert after.steps_merged == merged.steps_merged, "deltas are added where mixes share a batch"
    assert after.steps_added > merged.steps_added
    engine.forget(MIX)
    assert engine.memory().cache < merged.cache


def test_a_mix_is_not_merged_before_that_pays(oracle: Oracle) -> None:
    """Merging costs as much as adding does in eight steps of this batch."""
    costs = Costs(read=0.0, row=1.0, decode=8.0 * len(PROMPTS), install=0.0)
    engine = engine_of(oracle, CACHE_BYTES, costs)
    short = [prompt[:1] for prompt in PROMPTS]
    engine.greedy([MIX] * len(PROMPTS), short, num_tokens=7)
    assert engine.memory().merges == 0
    engine.greedy([MIX] * len(PROMPTS), short, num_tokens=7)
    assert engine.memory().merges == 1
    engine.close()


def test_a_shadow_merges_nothing_and_answers_alike(oracle: Oracle) -> None:
    engine = engine_of(oracle, CACHE_BYTES)
    shadows = engine.greedy([MIX] * 3, PROMPTS, num_tokens=8, is_shadow=True)
    assert engine.memory().merges == 0
    assert engine.memory().steps_added > 0
    served = engine.greedy([MIX] * 3, PROMPTS, num_tokens=8)
    assert engine.memory().merges == 1
    assert [answer.tokens for answer in shadows] == [answer.tokens for answer in served]
    engine.close()


def test_a_mix_that_does_not_fit_the_budget_is_not_merged(oracle: Oracle) -> None:
    engine = engine_of(oracle, 1000)
    oracle.check(engine, [MIX] * 3, PROMPTS)
    assert engine.memory().merges == 0
    assert engine.memory().steps_merged == 0
    engine.close()
