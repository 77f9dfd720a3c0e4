"""On real weights in bfloat16, served answers are as close to exact as a merged checkpoint's.

Serving keeps base and deltas apart, so that neither is rounded into the other; merging rounds
every weight once. Both are measured against the same mixes merged and run in float32: of dense
deltas, and of int4 ones, which the compiled kernel multiplies with inputs in 8 bits.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from examples.smollm2 import prepare_base
from taskmix_composer.build import build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Forms
from taskmix_composer.mix import Mix
from taskmix_server.settings import default_cache
from tests.support.inprocess import InProcessEngine
from tests.support.merged import forced_logprobs, merged_model
from tests.support.tiny import copy_without_weights

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]

NUM_PROMPTS = 32
NUM_TOKENS = 64  # 2,048 answers in all
MAX_RATIO = 1.5
# Two of them, so that no mix has the batch to itself and is merged.
MIXES = [Mix.parse("a:0.7+b:-0.4"), Mix.parse("a:-0.3+b:0.6")]

SUBJECTS = ["the sea", "a small town", "an old clock", "winter", "two friends", "a river", "bread"]
OPENINGS = ["Write a story about {}.", "Explain {} to a child.", "The best thing about {} is"]


@pytest.fixture(scope="module")
def base() -> Path:
    return prepare_base(default_cache() / "models")


@pytest.fixture(scope="module", params=["dense", "int4"])
def bank(
    request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("smollm2")
    sources = {name: perturbed(base, folder / name, seed) for seed, name in enumerate("ab")}
    build_bank(base, sources, Forms(Scheme(request.param)), folder / "bank")
    return folder / "bank"


@pytest.fixture
def engine(base: Path, bank: Path) -> Iterator[InProcessEngine]:
    engine = InProcessEngine(
        base, bank, max_num_seqs=NUM_PROMPTS, max_model_len=256, kv_cache_memory_bytes=2**29
    )
    engine.load("a", "b")
    yield engine
    engine.close()


def test_bfloat16_error_is_at_most_that_of_a_merged_checkpoint(
    engine: InProcessEngine,
    base: Path,
    bank: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    prompts = token_prompts(base)
    mixes = [MIXES[index % len(MIXES)] for index in range(len(prompts))]
    answers = engine.greedy(mixes, prompts, NUM_TOKENS)
    served_error, merged_error = 0.0, 0.0
    for number, mix in enumerate(MIXES):
        own = slice(number, None, len(MIXES))
        asked, given = prompts[own], answers[own]
        tokens = [answer.tokens for answer in given]
        exact, rounded = (
            forced_logprobs(
                merged_model(bank, base, mix, tmp_path / f"{number}-{dtype}", dtype), asked, tokens
            )
            for dtype in (torch.float32, torch.bfloat16)
        )
        served = torch.tensor([answer.logprobs for answer in given])
        assert exact.numel() >= 1000
        served_error += float((served - exact).abs().mean())
        merged_error += float((rounded - exact).abs().mean())
    assert engine.memory().steps_merged == 0
    record_property("served_over_merged_error", served_error / merged_error)
    assert merged_error > 0.0, "rounding the weights must show, or nothing was compared"
    assert served_error <= MAX_RATIO * merged_error, f"{served_error:.5f}, {merged_error:.5f}"


def perturbed(base: Path, out: Path, seed: int) -> Path:
    """The base with noise of a twentieth of each tensor's spread: larger than a real fine-tune."""
    copy_without_weights(base, out)
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, weight in load_file(base / "model.safetensors").items():
        wide = weight.float()
        noise = torch.randn(weight.shape, generator=generator)
        weights[name] = (wide + 0.05 * wide.std() * noise).to(weight.dtype)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def token_prompts(base: Path) -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(base)
    texts = [opening.format(subject) for opening in OPENINGS for subject in SUBJECTS]
    texts += [f"Once upon a time in {place}," for place in ("Rome", "Oslo", "Lima", "Cairo")]
    texts += [
        f"A recipe for {dish}:" for dish in ("soup", "rice", "pie", "tea", "jam", "stew", "fish")
    ]
    return [tokenizer(text).input_ids for text in texts[:NUM_PROMPTS]]
