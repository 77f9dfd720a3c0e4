"""What fine-tunes keep of their scores when a bank codes them, against the bytes they take.

Every scheme's bank of the same eight real fine-tunes is built, its decoded task vectors are added
to the base, and the prompts of each task are answered greedily in bfloat16: the held-out ones, or
those for validation, on which settings are chosen.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks import retention_report
from benchmarks.record import append
from benchmarks.scorer import SPLITS, Scorer, load
from examples.finetune import finetune
from examples.smollm2 import prepare_base
from examples.tasks import TASKS
from taskmix_composer.bank import Bank
from taskmix_composer.build import build_bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.compose import merged_tensor
from taskmix_composer.forms import Forms
from taskmix_composer.mix import Mix
from taskmix_server.settings import default_cache

SCHEMES = (
    "exact",
    "int8",
    "int4",
    "int3",
    "int2",
    "rtvq(base=3,offset=2)",
    "tall(mtl=4)",
    "tall(mtl=3)",
    "tall(mtl=2)",
    "emr(mtl=4)",
    "sign",
    "sparse",
    "sparse(density=0.05,bits=1)",
    "sparse(density=0.2,bits=1)",
    "lowrank(rank=64)",
)
NUM_WORKERS = 2


@dataclass(frozen=True, slots=True)
class Coded:
    """One task under one scheme.

    Bytes have the task's share of a shared vector in them; `resident_bytes` is without entropy
    coding. `right` says of each prompt whether it was answered exactly; `relative_l2` is the norm
    of the decoded vector's error over that of the fine-tune's own.
    """

    scheme: str
    task: str
    stored_bytes: float
    resident_bytes: float
    relative_l2: float
    right: tuple[bool, ...]


def measure(models: Path, scheme: str, split: str) -> list[Coded]:
    """Build a scheme's bank of all tasks and score each of them."""
    torch.set_num_threads(1)
    sources = {name: models / name for name in TASKS}
    path = models / "retention" / scheme.replace("@", "").replace("/", "_")
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(exist_ok=True)
    bank = build_bank(models / "base", sources, Forms.parse(scheme), path)
    scorer = load(models / "base", torch.bfloat16)
    base = Checkpoint.open(models / "base")
    coded = []
    for name in TASKS:
        weights, relative_l2 = _weights(bank, base, name, models / name)
        scorer.set_weights(weights)
        right = _right(scorer, name, models, split)
        coded.append(Coded(scheme, name, *_bytes(bank, name), relative_l2, right))
    shutil.rmtree(path)
    return coded


def measure_own(models: Path, split: str) -> dict[str, dict[str, tuple[bool, ...]]]:
    """What the base and each fine-tune itself answer, by task."""
    torch.set_num_threads(1)
    scorer = load(models / "base", torch.bfloat16)
    answers = {"base": {name: _right(scorer, name, models, split) for name in TASKS}, "own": {}}
    for name in TASKS:
        checkpoint = Checkpoint.open(models / name)
        scorer.set_weights({tensor: checkpoint.read(tensor) for tensor in checkpoint.tensors})
        answers["own"][name] = _right(scorer, name, models, split)
    return answers


def _weights(
    bank: Bank, base: Checkpoint, name: str, tuned: Path
) -> tuple[Mapping[str, Tensor], float]:
    """Base plus the decoded task vector, float32, and its relative error."""
    original, mix = Checkpoint.open(tuned), Mix.of({name: 1.0})
    weights, lost, total = {}, 0.0, 0.0
    for tensor in base.tensors:
        before = base.read(tensor)
        weights[tensor] = merged_tensor(before, bank, mix, tensor)
        own = original.read(tensor).float()
        lost += float((weights[tensor] - own).double().square().sum())
        total += float((own - before.float()).double().square().sum())
    return weights, (lost / total) ** 0.5


def _bytes(bank: Bank, name: str) -> tuple[float, float]:
    """A task's bytes on disk and resident, with its share of the vector that it is coded over."""
    entry = bank.entry(name)
    stored, resident = float(entry.content.shard.num_bytes), float(entry.content.resident_bytes)
    if entry.shared:
        num_sharing = sum(other.shared == entry.shared for other in bank.entries.values())
        content = bank.manifest.shared[entry.shared].content
        stored += content.shard.num_bytes / num_sharing
        resident += content.resident_bytes / num_sharing
    return stored, resident


def _right(scorer: Scorer, name: str, models: Path, split: str) -> tuple[bool, ...]:
    return tuple(scorer.correct(TASKS[name](models), split).tolist())


def _prepared(models: Path) -> Iterator[str]:
    """Fine-tune what is missing, one task at a time."""
    base = prepare_base(models)
    for name, task in TASKS.items():
        finetune(base, task(models), models / name)
        yield name


@click.command()
@click.option(
    "--cache", type=click.Path(path_type=Path), default=lambda: default_cache() / "models"
)
@click.option(
    "--split",
    type=click.Choice(list(SPLITS)),
    default="test",
    show_default=True,
    help="Whose prompts to answer; only figures of the test split go into docs.",
)
@click.option("--scheme", "schemes", multiple=True, help="Only these.")
@click.option(
    "--compare", "pair", nargs=2, metavar="A B", help="Only these two schemes, and how they differ."
)
def main(cache: Path, split: str, schemes: tuple[str, ...], pair: tuple[str, str] | None) -> None:
    """Measure, print and append to results/retention.jsonl.

    Figures of the test split replace those of the same schemes in docs/retention.{md,png}.
    """
    if pair and schemes:
        raise click.UsageError("--compare names the schemes itself; leave --scheme out")
    click.echo(f"fine-tuned: {', '.join(_prepared(cache))}")
    with ProcessPoolExecutor(NUM_WORKERS) as pool:
        answers = pool.submit(measure_own, cache, split)
        chosen = pair or schemes or SCHEMES
        runs = [pool.submit(measure, cache, scheme, split) for scheme in chosen]
        coded = [asdict(one) for run in runs for one in run.result()]
        own = answers.result()
    checkpoint_bytes = (cache / "base" / "model.safetensors").stat().st_size
    rows = retention_report.rows(coded, own, checkpoint_bytes)
    rates = _rates(own)
    click.echo(retention_report.table(rows, rates))
    found: dict[str, object] = {"split": split, "own": rates, "rows": rows}
    if pair:
        found["comparison"] = difference = retention_report.compared(coded, *pair)
        click.echo(retention_report.sentence(difference))
    path = append("retention", found)
    click.echo(f"appended to {path}")
    if split == "test":
        records = [json.loads(line) for line in path.read_text().splitlines()]
        retention_report.publish(records, SCHEMES)


def _rates(
    answers: Mapping[str, Mapping[str, tuple[bool, ...]]],
) -> dict[str, dict[str, float]]:
    return {
        who: {task: sum(right) / len(right) for task, right in by_task.items()}
        for who, by_task in answers.items()
    }


if __name__ == "__main__":
    main()
