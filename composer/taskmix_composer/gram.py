"""The table of inner products of a bank's task vectors, from which scalar merge methods compute.

The vectors are the decoded ones: what is measured is what a mix adds.
"""

import torch
from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.progress import Meter
from taskmix_composer.quant import decode

_CHUNK = 1 << 20


def gram_table(bank: Bank, base: Checkpoint, meter: Meter) -> Tensor:
    """float64 [num_tensors, num_tasks, num_tasks]: per tensor, in the order of their names."""
    tasks = sorted(bank.entries)
    tables = []
    for name in sorted(bank.base.tensors):
        tables.append(_tensor_gram(bank, base, tasks, name))
        meter.advance(bank.base.tensors[name].num_parameters * len(tasks))
    return torch.stack(tables) if tables else torch.zeros(0, len(tasks), len(tasks))


def without_task(gram: Tensor, tasks: tuple[str, ...], name: str) -> Tensor:
    """The table without a task's row and column."""
    kept = [index for index, task in enumerate(tasks) if task != name]
    return gram[:, kept][:, :, kept]


def _tensor_gram(bank: Bank, base: Checkpoint, tasks: list[str], name: str) -> Tensor:
    gram = torch.zeros(len(tasks), len(tasks), dtype=torch.float64)
    changed = [index for index, task in enumerate(tasks) if name in bank.entry(task).tensors]
    vectors = _decoded(bank, base, [tasks[index] for index in changed], name)
    for pieces in zip(*(vector.flatten().split(_CHUNK) for vector in vectors), strict=True):
        piece = torch.stack(pieces).double()
        gram[torch.tensor(changed)[:, None], torch.tensor(changed)] += piece @ piece.T
    return gram


def _decoded(bank: Bank, base: Checkpoint, tasks: list[str], name: str) -> list[Tensor]:
    """Tasks' deltas of one tensor; what they share is read once."""
    before = base.read(name)
    used = {bank.entry(task).shared for task in tasks} - {""}
    shared = {digest: bank.read_shared(digest, name) for digest in used}
    return [
        decode(bank.read(task, name, shared.get(bank.entry(task).shared)), before) for task in tasks
    ]
