"""A task that a model small enough to train in a test can learn, and that model."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from examples.finetune import Recipe, finetune
from examples.tasks import Example, Task

VERDICTS = {"good": "yes", "fine": "yes", "bad": "no", "poor": "no"}


@pytest.fixture(scope="module")
def task() -> Task:
    """Whether the second word is a kind one; the first words held out are never trained on."""
    examples = [
        Example(f"{first} {word}:", verdict)
        for first in "abcdefghijkl"
        for word, verdict in VERDICTS.items()
    ]
    return Task(
        "verdict",
        "whether a word is kind",
        6,
        train=tuple(examples[:36]),
        held_out=tuple(examples[36:44]),
        validation=tuple(examples[44:]),
    )


@pytest.fixture(scope="module")
def one_thread():
    """Tensors this small are slower on two threads, and much slower when the machine is busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def base(one_thread, tmp_path_factory):
    """A checkpoint with random weights, whose tokens are bytes."""
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
def recipe() -> Recipe:
    return Recipe(num_steps=60, batch_size=8, learning_rate=5e-3)


@pytest.fixture(scope="module")
def tuned(base, task, recipe, tmp_path_factory):
    """The base fine-tuned on the task."""
    directory = tmp_path_factory.mktemp("tuned") / task.name
    finetune(base, task, directory, recipe)
    return directory
