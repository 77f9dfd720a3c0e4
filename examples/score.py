"""Score a checkpoint on a task with transformers alone, to compare a server's answers with."""

from pathlib import Path

import click
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.tasks import TASKS, Task


def answers(checkpoint: Path, task: Task, batch_size: int = 50) -> list[str]:
    """The checkpoint's greedy continuation of each of the task's held-out prompts."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    prompts = task.prompts()
    limit = task.max_answer_tokens
    texts: list[str] = []
    with click.progressbar(range(0, len(prompts), batch_size), label="Answering") as starts:
        for start in starts:
            batch = tokenizer(
                prompts[start : start + batch_size], return_tensors="pt", padding=True
            )
            with torch.inference_mode():
                tokens = model.generate(**batch, max_new_tokens=limit, do_sample=False)
            continuations = tokens[:, batch.input_ids.shape[1] :]
            texts += tokenizer.batch_decode(continuations, skip_special_tokens=True)
    return texts


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
