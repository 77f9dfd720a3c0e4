"""A tiny base, fine-tunes of it, and a bank."""

from dataclasses import dataclass
from pathlib import Path

from tests.support.served import taskmix
from tests.support.tiny import TinyModel, make_base, make_finetune


@dataclass(frozen=True)
class Models:
    """Directories of a base, its fine-tunes by name, and a bank of tasks a, b and c.

    The bank has planes ties.a and ties.b, elected for a and b together.
    """

    base: Path
    finetunes: dict[str, Path]
    bank: Path


def make_models(directory: Path, scheme: str = "dense") -> Models:
    """Tasks a and b change everything, the tied head included; c changes the MLPs alone.

    `spare` and `other` are fine-tunes that are not in the bank.
    """
    base = make_base(directory / "tiny-base", TinyModel())
    finetunes = {
        name: make_finetune(base, directory / name, seed, only="mlp" if name == "c" else "")
        for seed, name in enumerate(("a", "b", "c", "spare", "other"), start=1)
    }
    bank = directory / "bank"
    tasks = [f"--task={name}={finetunes[name]}" for name in "abc"]
    taskmix("bank", "build", "--base", base, *tasks, "--scheme", scheme, "--out", bank)
    originals = [f"--from={name}={finetunes[name]}" for name in "ab"]
    ties = ("--method", "ties", "--param", "merge_func=sum", "--tasks", "a,b", "--planes")
    taskmix("bank", "merge", bank, "--base", base, *originals, *ties, "--name", "ties")
    return Models(base, finetunes, bank)
