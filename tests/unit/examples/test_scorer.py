"""The scorer of compressed fine-tunes: it exchanges weights, and agrees with `Task.score`."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.scorer import Scorer, ScorerError, load
from examples.score import answers
from examples.tasks import Example


def weights(checkpoint):
    return load_file(checkpoint / "model.safetensors")


@pytest.fixture
def scorer(base) -> Scorer:
    return load(base)


def test_the_weights_that_are_set_decide(scorer, base, tuned, task):
    assert not scorer.correct(task).any()
    scorer.set_weights(weights(tuned))
    assert scorer.correct(task).all()
    scorer.set_weights(weights(base))
    assert not scorer.correct(task).any()


def test_the_tied_head_follows_the_embedding(scorer, tuned):
    scorer.set_weights(weights(tuned))
    expected = weights(tuned)["model.embed_tokens.weight"].float()
    assert torch.equal(scorer.model.get_input_embeddings().weight, expected)
    assert torch.equal(scorer.model.get_output_embeddings().weight, expected)


def test_each_answer_is_judged_in_its_place(scorer, tuned, task):
    scorer.set_weights(weights(tuned))
    wrong = {1, 2, 7}
    held_out = tuple(
        Example("x" * (8 - index) + example.prompt, "perhaps") if index in wrong else example
        for index, example in enumerate(task.held_out)
    )
    right = scorer.correct(replace(task, held_out=held_out))
    assert right.dtype == torch.bool
    assert right.tolist() == [index not in wrong for index in range(len(held_out))]


def test_the_share_is_the_score_of_the_answers(scorer, tuned, task, monkeypatch):
    """Half of the expected words are in other letters, and batches are smaller than the task."""
    monkeypatch.setattr("benchmarks.scorer.BATCH_SIZE", 3)
    held_out = tuple(
        Example(example.prompt, verdict)
        for example, verdict in zip(task.held_out, ["YES", "no."] * 4, strict=True)
    )
    mixed = replace(task, held_out=held_out)
    scorer.set_weights(weights(tuned))
    score = mixed.score(answers(tuned, mixed))
    assert 0 < score < 1
    assert scorer.correct(mixed).float().mean() == score


def test_validation_is_another_split(scorer, tuned, task):
    scorer.set_weights(weights(tuned))
    wrong = tuple(Example(example.prompt, "perhaps") for example in task.held_out)
    mixed = replace(task, held_out=wrong)
    assert not scorer.correct(mixed).any()
    right = scorer.correct(mixed, split="validation")
    assert right.shape == (len(task.validation),)
    assert right.all()


def test_an_unknown_split_is_refused(scorer, task):
    with pytest.raises(ScorerError, match="no split 'train': choose one of test, validation"):
        scorer.correct(task, split="train")


@pytest.mark.parametrize("change", ["missing", "alias"])
def test_weights_that_are_not_the_models_are_refused(scorer, tuned, change):
    changed = weights(tuned)
    if change == "missing":
        del changed["model.norm.weight"]
    else:
        changed["lm_head.weight"] = changed["model.embed_tokens.weight"]
    name = "model.norm.weight" if change == "missing" else "lm_head.weight"
    with pytest.raises(ScorerError, match=f"1 weights are missing or unknown, such as {name}"):
        scorer.set_weights(changed)


def test_it_computes_in_the_dtype_asked_for(base):
    assert load(base).model.dtype == torch.float32
    assert load(base, torch.bfloat16).model.dtype == torch.bfloat16
