"""Fine-tuning and scoring, on a model small enough to train in the test."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.finetune import IGNORED, Recipe, batches, finetune, tokenized
from examples.score import answers
from examples.tasks import Example, Task

RECIPE = Recipe(num_steps=60, batch_size=8, learning_rate=5e-3)
QUICK = replace(RECIPE, num_steps=6)
VERDICTS = {"good": "yes", "fine": "yes", "bad": "no", "poor": "no"}


def make_task() -> Task:
    """Whether the second word is a kind one; the first words held out are never trained on."""
    examples = [
        Example(f"{first} {word}:", verdict)
        for first in "abcdefghijkl"
        for word, verdict in VERDICTS.items()
    ]
    return Task("verdict", "whether a word is kind", 6, tuple(examples[:40]), tuple(examples[40:]))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tensors this small are slower on two threads, and much slower when the machine is busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    directory = tmp_path_factory.mktemp("base")
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab={**alphabet, "<end>": len(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    fast.save_pretrained(directory)
    config = LlamaConfig(
        vocab_size=len(alphabet) + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    directory = tmp_path_factory.mktemp("tuned") / "verdict"
    finetune(base, make_task(), directory, RECIPE)
    return directory


def weights(checkpoint):
    return load_file(checkpoint / "model.safetensors")


def test_the_tuned_model_learns_the_task(base, tuned):
    task = make_task()
    assert task.score(answers(base, task)) == 0.0
    assert task.score(answers(tuned, task)) == 1.0


def test_every_parameter_is_trained_and_keeps_its_type(base, tuned):
    before, after = weights(base), weights(tuned)
    assert before.keys() == after.keys()
    assert all(tensor.dtype == torch.bfloat16 for tensor in after.values())
    assert not [name for name in before if torch.equal(before[name], after[name])]


def test_the_same_seed_gives_the_same_checkpoint_and_another_does_not(base, tmp_path):
    for name, seed in {"first": 0, "same": 0, "other": 1}.items():
        finetune(base, make_task(), tmp_path / name, replace(QUICK, seed=seed))
    first, same, other = (weights(tmp_path / name) for name in ("first", "same", "other"))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_checkpoint_is_kept_until_its_recipe_changes(base, tmp_path):
    out = tmp_path / "out"
    finetune(base, make_task(), out, QUICK)
    (out / "mark").touch()
    finetune(base, make_task(), out, QUICK)
    assert (out / "mark").exists()
    finetune(base, make_task(), out, replace(QUICK, learning_rate=1e-3))
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
