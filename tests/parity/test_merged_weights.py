"""Served answers equal the merged checkpoint's: the gate for every change of engine or vLLM.

Each engine serves all mixes in one concurrent batch, prompts longer than a step among them; the
oracle is the exported checkpoint of each mix, run alone by transformers in float32.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from taskmix_composer.build import add_task, build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Forms
from taskmix_composer.mix import BASE_MIX, Mix
from tests.support.finetunes import change_rows, make_adapter
from tests.support.inprocess import InProcessEngine
from tests.support.parity import NUM_TOKENS, Oracle, prompt_of
from tests.support.tiny import TinyModel, make_base, make_finetune

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]

MAX_BATCHED_TOKENS = 64
MAX_SEQS = 8
BLOCK = 32

SHAPES = {
    "llama-tied-biased": TinyModel("llama", tied=True, biased=True),
    "llama-untied": TinyModel("llama", tied=False),
    "qwen3-tied": TinyModel("qwen3", tied=True),
}

LAYERED = Mix.parse(
    json.dumps(
        {
            "terms": [
                {
                    "task": "b",
                    "coefficient": 1.2,
                    "layers": {
                        "default": 0.9,
                        "by_layer": {"0": 0.2, "2": -1.0},
                        "by_tensor": {
                            "model.layers.1.self_attn.k_proj.weight": 0.1,
                            "model.layers.1.mlp.up_proj.weight": 0.0,
                            "model.embed_tokens.weight": -0.5,
                            "model.norm.weight": 2.0,
                        },
                    },
                },
                {"task": "a", "coefficient": 0.3},
            ]
        }
    )
)

MIXES = [
    BASE_MIX,
    Mix.parse("a"),
    Mix.parse("b:-0.8"),
    Mix.parse("a:0.7+b:0.3"),
    LAYERED,
    Mix.parse("adapter:1.5+a:-0.2"),
    Mix.parse("rows:2+int4:0.5+a:0.3+twin:-0.7"),
    Mix.parse("a:0.2+b:0.2+adapter:0.2+rows:0.2+int4:0.2"),
]


@dataclass(frozen=True)
class World:
    """A served tiny model, the bank it serves, and the oracle of its mixes."""

    base: Path
    bank: Path
    folder: Path
    engine: InProcessEngine
    oracle: Oracle

    def check(self, mixes: list[Mix], prompts: list[list[int]]) -> None:
        self.oracle.check(self.engine, mixes, prompts)


@pytest.fixture(scope="module", params=SHAPES)
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(request.param)
    base = make_base(folder / "base", SHAPES[request.param])
    sources = {
        "a": make_finetune(base, folder / "a", seed=1),
        "b": make_finetune(base, folder / "b", seed=2),
        "adapter": make_adapter(base, folder / "adapter"),
        "rows": change_rows(base, folder / "rows", "embed_tokens", "lm_head"),
    }
    sources["twin"] = sources["a"]  # another name for equal content
    bank = folder / "bank"
    build_bank(base, sources, Forms(Scheme("dense")), bank)
    fourth = make_finetune(base, folder / "int4", seed=3)
    add_task(bank, base, "int4", fourth, Forms(Scheme("int4")))
    engine = InProcessEngine(
        base,
        bank,
        max_num_seqs=MAX_SEQS,
        max_num_batched_tokens=MAX_BATCHED_TOKENS,
        max_model_len=512,
        block_size=BLOCK,
        kv_cache_memory_bytes=2**26,
    )
    engine.load(*sources, "int4")
    (folder / "merged").mkdir()
    oracle = Oracle(base, bank, folder / "merged", models={})
    yield World(base, bank, folder, engine, oracle)
    engine.close()


def test_every_mix_of_one_batch_answers_as_its_merged_checkpoint(world: World) -> None:
    assert len(set(MIXES)) == MAX_SEQS, "as many distinct mixes as sequences"
    lengths = [7, 3 * MAX_BATCHED_TOKENS, 33, 5, 90, 20, 64, 1]
    assert max(lengths) > MAX_BATCHED_TOKENS, "some prompts take several steps"
    world.check(MIXES, [prompt_of(length, seed=length) for length in lengths])


def test_more_requests_than_sequences_share_and_wait(world: World) -> None:
    mixes = [MIXES[index % 3] for index in range(2 * MAX_SEQS + 1)]
    world.check(mixes, [prompt_of(4 + index, seed=index) for index in range(len(mixes))])


def test_prefixes_are_reused_within_a_mix_and_never_across(world: World) -> None:
    prompt = prompt_of(3 * BLOCK + 5, seed=99)
    first, second, base = Mix.parse("a:0.11"), Mix.parse("a:0.12"), BASE_MIX
    cold = world.engine.greedy([first], [prompt], NUM_TOKENS)[0]
    assert cold.num_cached_tokens == 0
    other = world.engine.greedy([second, base], [prompt, prompt], NUM_TOKENS)
    assert [answer.num_cached_tokens for answer in other] == [0, 0]
    warm = world.engine.greedy([first], [prompt], NUM_TOKENS)[0]
    assert warm.num_cached_tokens >= 3 * BLOCK
    assert warm.tokens == cold.tokens
    world.check([first, second, base], [prompt, prompt, prompt])


def test_tasks_are_unloaded_loaded_and_added_between_batches(world: World) -> None:
    prompts = [prompt_of(9, seed=5), prompt_of(40, seed=6)]
    before = world.engine.greedy([Mix.parse("a"), Mix.parse("a:0.5+b:0.5")], prompts, NUM_TOKENS)
    world.engine.unload("a")
    world.check([Mix.parse("b"), BASE_MIX], prompts)
    added = make_finetune(world.base, world.folder / "added", seed=9)
    add_task(world.bank, world.base, "added", added, Forms(Scheme("dense")))
    world.engine.load("a", "added")
    after = world.engine.greedy([Mix.parse("a"), Mix.parse("a:0.5+b:0.5")], prompts, NUM_TOKENS)
    assert [answer.tokens for answer in after] == [answer.tokens for answer in before]
    world.check([Mix.parse("added"), Mix.parse("added:-0.5+a")], prompts)


def test_prompt_logprobs_of_the_base_beside_a_mix_that_changes_the_head(world: World) -> None:
    prompt = prompt_of(20, seed=3)
    alone = world.engine.prompt_logprobs([BASE_MIX], [prompt])
    beside = world.engine.prompt_logprobs([BASE_MIX, Mix.parse("a")], [prompt, prompt_of(20, 4)])
    torch.testing.assert_close(torch.tensor(beside), torch.tensor(alone), rtol=0.0, atol=1e-5)
    assert len(alone) == len(prompt) - 1
