"""Fine-tuning and scoring, on a model small enough to train in the test."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from examples.finetune import IGNORED, Recipe, batches, finetune, tokenized
from examples.score import answers
from examples.tasks import Example


@pytest.fixture
def quick(recipe) -> Recipe:
    return replace(recipe, num_steps=6)


def weights(checkpoint):
    return load_file(checkpoint / "model.safetensors")


def test_the_tuned_model_learns_the_task(base, tuned, task):
    assert task.score(answers(base, task)) == 0.0
    assert task.score(answers(tuned, task)) == 1.0


def test_every_parameter_is_trained_and_keeps_its_type(base, tuned):
    before, after = weights(base), weights(tuned)
    assert before.keys() == after.keys()
    assert all(tensor.dtype == torch.bfloat16 for tensor in after.values())
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_the_same_seed_gives_the_same_checkpoint_and_another_does_not(base, task, quick, tmp_path):
    for name, seed in {"first": 0, "same": 0, "other": 1}.items():
        finetune(base, task, tmp_path / name, replace(quick, seed=seed))
    first, same, other = (weights(tmp_path / name) for name in ("first", "same", "other"))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_checkpoint_is_kept_until_its_recipe_changes(base, task, quick, tmp_path):
    out = tmp_path / "out"
    finetune(base, task, out, quick)
    (out / "mark").touch()
    finetune(base, task, out, quick)
    assert (out / "mark").exists()
    finetune(base, task, out, replace(quick, learning_rate=1e-3))
    assert not (out / "mark").exists()


def test_only_the_answer_and_the_end_are_predicted(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    batch = tokenized(tokenizer, [Example("ab:", "yes"), Example("abcd:", "no")])
    assert batch.token_ids.shape == batch.targets.shape == (2, 9)
    for row, expected in enumerate([" yes<end>", " no<end>"]):
        predicted = batch.targets[row][batch.targets[row] != IGNORED]
        assert tokenizer.decode(predicted) == expected
    assert batch.token_ids[0, 3:7].tolist() == batch.targets[0, 2:6].tolist()


def test_an_epoch_holds_every_example_once_and_like_lengths_together():
    examples = [Example("x" * n, "y") for n in range(1, 65)]
    epoch = list(islice(batches(examples, Recipe(batch_size=4)), 16))
    assert sorted(example.prompt for batch in epoch for example in batch) == [
        example.prompt for example in examples
    ]
    spans = [len(batch[-1].prompt) - len(batch[0].prompt) for batch in epoch]
    assert max(spans) < 32
    starts = [len(batch[0].prompt) for batch in epoch]
    assert starts != sorted(starts)


def test_the_learning_rate_warms_up_and_falls_to_almost_nothing():
    recipe = Recipe(num_steps=100, num_warmup_steps=4, learning_rate=1.0)
    rates = [recipe.learning_rate_at(step) for step in range(100)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0 < rates[-1] < 0.02
