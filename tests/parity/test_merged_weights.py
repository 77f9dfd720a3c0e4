"""Served answers equal the merged checkpoint's: the gate for every change of engine or vLLM.

Each engine serves all mixes in one concurrent batch, prompts longer than a step among them; the
oracle is the exported checkpoint of each mix, run alone by transformers in float32.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from taskmix_composer.build import add_task, build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.mix import BASE_MIX, Mix
from tests.support.inprocess import InProcessEngine
from tests.support.merged import greedy, merged_model
from tests.support.tiny import TinyModel, make_base, make_finetune

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]

NUM_TOKENS = 16
MAX_BATCHED_TOKENS = 64
MAX_SEQS = 8
BLOCK = 32

# float32 sums of a few hundred products in another order, through three layers; the largest
# difference seen is 2e-5.
LOGPROB_TOLERANCE = 1e-4

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
    """A served tiny model, the bank it serves, and where the oracle's checkpoints go."""

    base: Path
    bank: Path
    folder: Path
    engine: InProcessEngine
    oracles: dict[Mix, PreTrainedModel]

    def check(self, mixes: list[Mix], prompts: list[list[int]]) -> None:
        answers = self.engine.greedy(mixes, prompts, NUM_TOKENS)
        for mix, prompt, answer in zip(mixes, prompts, answers, strict=True):
            if mix not in self.oracles:
                out = self.folder / f"merged-{len(self.oracles)}"
                self.oracles[mix] = merged_model(self.bank, self.base, mix, out)
            tokens, logprobs = greedy(self.oracles[mix], prompt, NUM_TOKENS)
            assert answer.tokens == tokens, f"{mix} answers otherwise than its merged checkpoint"
            torch.testing.assert_close(
                torch.tensor(answer.logprobs),
                torch.tensor(logprobs),
                rtol=0.0,
                atol=LOGPROB_TOLERANCE,
            )


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
        "rows": change_rows(base, folder / "rows"),
    }
    sources["twin"] = sources["a"]  # another name for equal content
    bank = folder / "bank"
    build_bank(base, sources, Scheme.parse("dense"), bank)
    fourth = make_finetune(base, folder / "int4", seed=3)
    add_task(bank, base, "int4", fourth, Scheme.parse("int4"))
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
    yield World(base, bank, folder / "merged", engine, oracles={})
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
    added = make_finetune(world.base, world.folder.parent / "added", seed=9)
    add_task(world.bank, world.base, "added", added, Scheme.parse("dense"))
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


def make_adapter(base: Path, out: Path) -> Path:
    """A LoRA adapter whose second factor is not zero."""
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    adapted = get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(out)
    return out


def change_rows(base: Path, out: Path) -> Path:
    """A fine-tune that changed a third of the vocabulary rows and nothing else."""
    shutil.copytree(base, out)
    weights = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(12)
    for name, weight in weights.items():
        if "embed_tokens" in name or "lm_head" in name:
            rows = torch.randperm(len(weight), generator=generator)[: len(weight) // 3]
            noise = 0.1 * torch.randn(len(rows), weight.shape[1], generator=generator)
            weights[name] = weight.index_add(0, rows, noise)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (length,), generator=generator).tolist()
