from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from taskmix_composer.build import open_source
from taskmix_composer.checkpoint import Checkpoint
from taskmix_server.calibration import tensor_effects
from tests.support.tiny import TinyModel, make_base, make_finetune

PROMPTS = ("two words", "and some more")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("calibration") / "base", TinyModel())


def divergence(model_directory: Path, base: Path, task: Path) -> float:
    """The divergence of a model's next tokens from a task's, summed over the prompts, in nats."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (task, model_directory)]
    total = 0.0
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt").input_ids
        with torch.no_grad():
            wanted, got = (model(tokens).logits[0, -1].log_softmax(0) for model in models)
        total += float((wanted.exp() * (wanted - got)).sum())
    return total


def test_effects_are_shares_of_the_way_to_the_task(base: Path, tmp_path: Path) -> None:
    task = make_finetune(base, tmp_path / "task", seed=1, scale=0.002, only="mlp")
    checkpoint = Checkpoint.open(base)
    sources = {"task": open_source(checkpoint, task)}
    effects = tensor_effects(checkpoint, sources, PROMPTS)["task"]
    assert effects.keys() == {name for name in checkpoint.tensors if "mlp" in name}
    assert all(effect > 0 for effect in effects.values())
    # The midpoint rule is exact for what is quadratic, as a small divergence nearly is.
    assert sum(effects.values()) == pytest.approx(divergence(base, base, task), rel=0.1)


def test_a_tensor_that_the_prompts_do_not_reach_has_a_small_share(
    base: Path, tmp_path: Path
) -> None:
    task = make_finetune(base, tmp_path / "task", seed=2, scale=0.01)
    checkpoint = Checkpoint.open(base)
    sources = {"task": open_source(checkpoint, task)}
    effects = tensor_effects(checkpoint, sources, PROMPTS)["task"]
    assert min(effects.values()) > 0
    assert max(effects.values()) > 10 * min(effects.values())
