"""Which prompts of a task a model answers exactly, for many weights of one model in turn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from examples.score import continuations
from examples.tasks import Example, Task, is_right

BATCH_SIZE = 50
SPLITS: Mapping[str, Callable[[Task], Sequence[Example]]] = {
    # What is reported.
    "test": lambda task: task.held_out,
    # What settings are chosen on; never in the table of results.
    "validation": lambda task: task.validation,
}


class ScorerError(Exception):
    """A scorer was asked for what it cannot score."""


@dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """A model whose weights can be exchanged, and its tokenizer, which pads on the left."""

    tokenizer: Tokenizer
    model: PreTrainedModel

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy a whole model's weights in, rounded to the scorer's dtype.

        They go by the names in the checkpoint, where tied tensors stand once.
        """
        parameters = dict(self.model.named_parameters())
        if weights.keys() != parameters.keys():
            wrong = sorted(weights.keys() ^ parameters.keys())
            raise ScorerError(
                f"{len(wrong)} weights are missing or unknown, such as {wrong[0]}: give every "
                "tensor of the base's checkpoint, and tied tensors under their stored name alone"
            )
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(weights[name])

    def correct(self, task: Task, split: str = "test") -> Tensor:
        """Whether each greedy answer is right by the rule of `Task.score`, bool [examples].

        In the split's order. Texts are compared, not tokens: a model often spells the right word
        in other tokens than the tokenizer would, so one forward pass over the right answer, which
        is no faster, would count too few.
        """
        if split not in SPLITS:
            raise ScorerError(f"there is no split {split!r}: choose one of {', '.join(SPLITS)}")
        examples = SPLITS[split](task)
        # Prompts of like length go together, so that little is padding.
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].prompt))
        right = torch.zeros(len(examples), dtype=torch.bool)
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            prompts = [examples[index].prompt for index in chosen]
            answers = continuations(self.model, self.tokenizer, prompts, task.max_answer_tokens)
            for index, answer in zip(chosen, answers, strict=True):
                right[index] = is_right(answer, examples[index])
        return right


def load(base: Path, dtype: torch.dtype = torch.float32) -> Scorer:
    """A scorer that holds the base's own weights.

    In float32 an answer does not depend on what it is batched with. In bfloat16, three times as
    fast where the CPU multiplies it, one or two answers in 200 fall otherwise.
    """
    tokenizer = AutoTokenizer.from_pretrained(base, padding_side="left")
    return Scorer(tokenizer, AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval())
