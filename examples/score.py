"""Score a checkpoint on a task with transformers alone, to compare a server's answers with."""

from collections.abc import Sequence
from pathlib import Path

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from examples.tasks import TASKS, Task


def answers(checkpoint: Path, task: Task, batch_size: int = 50) -> list[str]:
    """The checkpoint's greedy continuation of each of the task's held-out prompts."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompts = task.prompts()
    texts: list[str] = []
    with click.progressbar(range(0, len(prompts), batch_size), label="Answering") as starts:
        for start in starts:
            chosen = prompts[start : start + batch_size]
            texts += continuations(model, tokenizer, chosen, task.max_answer_tokens)
    return texts


def continuations(
    model: PreTrainedModel, tokenizer: Tokenizer, prompts: Sequence[str], max_tokens: int
) -> list[str]:
    """The greedy continuation of each prompt, in one batch; `tokenizer` pads on the left."""
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True)
    with torch.inference_mode():
        tokens = model.generate(**batch, max_new_tokens=max_tokens, do_sample=False)
    return tokenizer.batch_decode(tokens[:, batch.input_ids.shape[1] :], skip_special_tokens=True)


@click.command()
@click.argument("checkpoint", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--task", "name", type=click.Choice(list(TASKS)), required=True)
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Keeps downloads.")
def main(checkpoint: Path, name: str, cache: Path) -> None:
    """Print the fraction of a task's held-out prompts that CHECKPOINT answers exactly."""
    task = TASKS[name](cache)
    print(f"{name}: {task.score(answers(checkpoint, task)):.3f}")


if __name__ == "__main__":
    main()
