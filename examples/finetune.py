"""Fine-tune every parameter of the base model on a task, on a CPU, in about two minutes."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path

import click
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from examples.published import Provenance, is_current, published
from examples.smollm2 import prepare_base
from examples.tasks import TASKS, Example, Task

# Batches are drawn from this many at a time, sorted by length, so that little is padding.
BATCHES_SORTED_TOGETHER = 8
IGNORED = -100


@dataclass(frozen=True, slots=True)
class Recipe:
    """How long and how fast to train. The learning rate warms up and then falls to zero."""

    seed: int = 0
    num_steps: int = 100
    num_warmup_steps: int = 5
    batch_size: int = 16
    learning_rate: float = 1e-4

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of a step in [0, num_steps)."""
        warmup = (step + 1) / self.num_warmup_steps
        decay = (self.num_steps - step) / (self.num_steps - self.num_warmup_steps)
        return self.learning_rate * min(warmup, decay, 1.0)


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids, int64 [batch, time], padded on the right, and each next token to predict.

    `targets` is IGNORED wherever the next token is not part of an answer.
    """

    token_ids: Tensor
    targets: Tensor


def finetune(base: Path, task: Task, out: Path, recipe: Recipe = Recipe()) -> None:
    """Write `base` fine-tuned on `task` to `out`, unless just that is there already.

    Training is in float32 with bfloat16 matmuls; the checkpoint is bfloat16.
    """
    provenance = _provenance(base, task, recipe)
    if is_current(out, provenance):
        return
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    _train(model, tokenizer, task, recipe)
    with published(out, provenance) as directory:
        model.to(torch.bfloat16).save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def _provenance(base: Path, task: Task, recipe: Recipe) -> Provenance:
    with (base / "model.safetensors").open("rb") as weights:
        base_sha256 = file_digest(weights, "sha256").hexdigest()
    return {
        "task": task.name,
        "examples_sha256": sha256(repr(task.train).encode()).hexdigest(),
        "base_sha256": base_sha256,
        **asdict(recipe),
    }


def _train(model: PreTrainedModel, tokenizer: Tokenizer, task: Task, recipe: Recipe) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.0, fused=True)
    examples = batches(task.train, recipe)
    with click.progressbar(range(recipe.num_steps), label=f"Training {task.name}") as steps:
        for step in steps:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            _loss(model, tokenized(tokenizer, next(examples))).backward()
            optimizer.step()
            optimizer.zero_grad()
    model.eval()


def batches(examples: Sequence[Example], recipe: Recipe) -> Iterator[list[Example]]:
    """Batches without end: every example once an epoch, examples of similar length together."""
    draw = random.Random(recipe.seed)  # noqa: S311 - a sample, not a secret
    num_sorted_together = recipe.batch_size * BATCHES_SORTED_TOGETHER
    while True:
        epoch = draw.sample(examples, len(examples))
        for start in range(0, len(epoch), num_sorted_together):
            pool = sorted(epoch[start : start + num_sorted_together], key=_num_characters)
            starts = range(0, len(pool), recipe.batch_size)
            for first in draw.sample(starts, len(starts)):
                yield pool[first : first + recipe.batch_size]


def _num_characters(example: Example) -> int:
    return len(example.prompt) + len(example.answer)


def tokenized(tokenizer: Tokenizer, examples: Sequence[Example]) -> Batch:
    """Each prompt followed by a space, its answer and the end of text."""
    sequences = []
    targets = []
    for example in examples:
        prompt = tokenizer(example.prompt).input_ids
        answer = [*tokenizer(f" {example.answer}").input_ids, tokenizer.eos_token_id]
        sequences.append(torch.tensor(prompt + answer))
        targets.append(torch.tensor([IGNORED] * (len(prompt) - 1) + answer + [IGNORED]))
    return Batch(_padded(sequences, tokenizer.pad_token_id), _padded(targets, IGNORED))


def _padded(sequences: list[Tensor], value: int) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True, padding_value=value)


def _loss(model: PreTrainedModel, batch: Batch) -> Tensor:
    """Mean cross-entropy of the answers' tokens; no logits are computed for other positions.

    Causal attention and padding on the right make an attention mask superfluous.
    """
    answered = batch.targets != IGNORED
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.base_model(batch.token_ids, use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[answered])
    return torch.nn.functional.cross_entropy(logits.float(), batch.targets[answered])


@click.command()
@click.option("--task", "name", type=click.Choice(list(TASKS)), required=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Checkpoint to write.")
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Holds the base.")
@click.option("--seed", type=int, default=0, show_default=True)
def main(name: str, out: Path, cache: Path, seed: int) -> None:
    """Fine-tune SmolLM2-135M-Instruct on one of the demo's tasks."""
    finetune(prepare_base(cache), TASKS[name](cache), out, Recipe(seed=seed))


if __name__ == "__main__":
    main()
