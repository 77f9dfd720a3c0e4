"""Checking a bank: every byte against its digest, and deltas against the models they came from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from taskmix_composer.adapter import open_finetuned
from taskmix_composer.bank import Bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.errors import CheckpointError
from taskmix_composer.quant import decode
from taskmix_composer.taskvector import Source, check_source, read_delta


@dataclass(frozen=True, slots=True)
class TaskError:
    """How far a stored task vector is from its original.

    `relative_l2` is the norm of the difference over the norm of the original, for the whole task
    vector; `by_tensor` the same for each tensor that has a delta, in the bank or originally.
    """

    task: str
    relative_l2: float
    by_tensor: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Report:
    """What was verified; a bank that fails raises instead."""

    revision: str
    num_entries: int
    num_tensors: int
    num_bytes: int
    errors: tuple[TaskError, ...]


def verify_bank(
    path: Path, base: Path | None = None, against: Mapping[str, Path] | None = None
) -> Report:
    """Read every delta of a bank, compare `base` with it, and measure tasks against originals.

    `against` maps tasks to the fine-tuned models or adapters they were built from; it needs `base`.
    """
    bank = Bank.open(path)
    checkpoint = None if base is None else Checkpoint.open(base)
    if checkpoint is not None:
        bank.check_base(checkpoint)
    sizes = _read_everything(bank)
    return Report(
        bank.revision,
        len(bank.entries),
        len(sizes),
        sum(sizes),
        tuple(
            _task_error(bank, checkpoint, task, directory)
            for task, directory in (against or {}).items()
        ),
    )


def _read_everything(bank: Bank) -> list[int]:
    """Read every delta, mask and table, which checks its bytes; return the deltas' bytes."""
    sizes = [
        bank.read(task, tensor).num_bytes
        for task, entry in bank.entries.items()
        for tensor in entry.tensors
    ]
    for digest, shared in bank.manifest.shared.items():
        for tensor in shared.content.tensors:
            bank.read_shared(digest, tensor)
    for task, entry in bank.entries.items():
        for tensor in entry.archive.tensors if entry.archive else ():
            bank.read_exact(task, tensor)
    for name, plane in bank.planes.items():
        for tensor in plane.content.tensors:
            bank.read_plane(name, tensor)
    bank.read_gram()
    return sizes


def _task_error(bank: Bank, base: Checkpoint | None, task: str, directory: Path) -> TaskError:
    if base is None:
        raise CheckpointError(
            "measuring a task against its original needs the base model too; give it as well"
        )
    entry = bank.entry(task)
    source = open_finetuned(directory)
    check_source(base, source)
    lost, total, by_tensor = 0.0, 0.0, {}
    for name in base.tensors:
        difference, original = _squared_norms(bank, base, source, task, name)
        lost, total = lost + difference, total + original
        if original or name in entry.tensors:
            by_tensor[name] = _ratio(difference, original)
    return TaskError(task, _ratio(lost, total), by_tensor)


def _squared_norms(
    bank: Bank, base: Checkpoint, source: Source, task: str, name: str
) -> tuple[float, float]:
    """Squared norms of (stored - original) and of the original delta of one tensor."""
    original = read_delta(base, source, name)
    held = name in bank.entry(task).tensors
    stored = decode(bank.read(task, name), base.read(name)) if held else None
    if original is None:
        return (0.0 if stored is None else _squared_norm(stored)), 0.0
    difference = original if stored is None else original - stored
    return _squared_norm(difference), _squared_norm(original)


def _squared_norm(values: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def _ratio(difference: float, original: float) -> float:
    if original == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return float((difference / original) ** 0.5)
