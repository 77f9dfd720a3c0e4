"""What vLLM serves with Triton's kernels is close to the merged checkpoint run in float32.

The kernels compute in 16 bits. In float16, which rounds an eighth as much as bfloat16, served
answers must be off by less than half of what the merged checkpoint is off by in bfloat16.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from taskmix_composer.bank import Bank
from taskmix_composer.build import add_task, build_bank
from taskmix_composer.forms import Forms
from taskmix_composer.mix import Mix
from taskmix_server.engine.vllm import routed
from tests.support.finetunes import make_adapter
from tests.support.inprocess import InProcessEngine
from tests.support.merged import forced_logprobs, merged_model
from tests.support.parity import prompt_of
from tests.support.tiny import TinyModel, make_base, make_finetune

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]

NUM_TOKENS = 3
MAX_RATIO = 0.5
ALONE = {"int4": "int4", "int2": "int2(group=32)", "sign": "sign"}
SET = ("tall-a", "tall-b")
MIXES = [
    Mix.parse("int4:0.7+int2:0.4"),
    Mix.parse("tall-a:0.5+sign:-0.6"),
    Mix.parse("tall-a:0.4+tall-b:0.3+int4:-0.3"),
    Mix.parse("adapter:0.8+int2:0.5+sign:0.3"),
    Mix.parse("int4"),
]
PROMPTS = [prompt_of(1 + index % 3, seed=index) for index in range(len(MIXES))]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shape = TinyModel(dtype=torch.bfloat16, biased=True, num_layers=1)
    return make_base(tmp_path_factory.mktemp("base") / "base", shape)


@pytest.fixture(scope="module")
def bank(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bank")
    sources = {
        name: make_finetune(base, folder / name, seed) for seed, name in enumerate([*ALONE, *SET])
    }
    build_bank(base, {name: sources[name] for name in SET}, Forms.parse("tall"), folder / "bank")
    for name, scheme in ALONE.items():
        add_task(folder / "bank", base, name, sources[name], Forms.parse(scheme))
    add_task(folder / "bank", base, "adapter", make_adapter(base, folder / "adapter"))
    return folder / "bank"


@pytest.fixture(scope="module")
def engine(base: Path, bank: Path) -> Iterator[InProcessEngine]:
    tasks = list(Bank.open(bank).entries)
    engine = InProcessEngine(
        base,
        bank,
        dtype="float16",
        max_num_seqs=len(PROMPTS),
        max_model_len=64,
        block_size=32,
        kv_cache_memory_bytes=2**24,
        kernel="triton",
        device_slots=len(tasks),
    )
    engine.load(*tasks)
    yield engine
    engine.close()


@pytest.mark.parametrize("max_pairs", [10_000, 0], ids=["products", "composed"])
def test_served_answers_are_those_of_merged_weights(
    engine: InProcessEngine,
    base: Path,
    bank: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_pairs: int,
) -> None:
    monkeypatch.setattr(routed, "MAX_PAIRS", max_pairs)
    mixes = [MIXES[index % len(MIXES)] for index in range(len(PROMPTS))]
    answers = engine.greedy(mixes, PROMPTS, NUM_TOKENS)
    served_error, merged_error = 0.0, 0.0
    for number, mix in enumerate(MIXES):
        own = slice(number, None, len(MIXES))
        tokens = [answer.tokens for answer in answers[own]]
        exact, rounded = (
            forced_logprobs(
                merged_model(bank, base, mix, tmp_path / f"{number}-{dtype}", dtype),
                PROMPTS[own],
                tokens,
            )
            for dtype in (torch.float32, torch.bfloat16)
        )
        served = torch.tensor([answer.logprobs for answer in answers[own]])
        served_error += float((served - exact).abs().sum())
        merged_error += float((rounded - exact).abs().sum())
    memory = engine.memory()
    assert memory.slots > 0
    assert memory.steps_merged == 0
    assert merged_error > 0.0, "rounding the weights must show, or nothing was compared"
    assert served_error <= MAX_RATIO * merged_error, f"{served_error:.5f}, {merged_error:.5f}"


def test_a_task_is_exchanged_in_its_slot(engine: InProcessEngine) -> None:
    (prompt,) = PROMPTS[:1]
    before = engine.greedy([Mix.parse("int4")], [prompt], NUM_TOKENS)
    slots = engine.memory().slots
    engine.unload("int4")
    engine.unload("sign")
    engine.load("sign", "int4")
    after = engine.greedy([Mix.parse("int4")], [prompt], NUM_TOKENS)
    assert after[0].tokens == before[0].tokens
    assert engine.memory().slots == slots
