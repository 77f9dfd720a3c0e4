"""What mergekit gives.

Its sorts leave to the processor's instruction set which of equal magnitudes come first. Here they
keep equal ones in order, so that its answer is the same on every machine.
"""

from collections.abc import Iterable
from functools import partial

import torch
from mergekit.merge_methods.api import merge_tensors
from mergekit.merge_methods.generalized_task_arithmetic import get_mask
from mergekit.sparsify import bernoulli, magnitude, magnitude_outliers
from torch import Tensor

from taskmix_composer.merge.dare import generator
from tests.oracle.composer.references.vectors import Deltas, masked, merged, tasks

torch.sort = partial(torch.sort, stable=True)
torch.argsort = partial(torch.argsort, stable=True)


def merge_one(method: str, delta: Tensor, **parameters: object) -> Tensor:
    """mergekit's merge of one tensor over a base of zeros, whose result is the delta."""
    parts = [torch.zeros_like(delta[0]), *delta]
    return merge_tensors(parts, method, parameters=parameters, base_index=0)


def ties(deltas: Deltas, *, density: float, weight: tuple[float, ...], **more: object) -> Deltas:
    def selected(_: str, delta: Tensor) -> Tensor:
        kept = torch.stack([magnitude(part, density) for part in delta])
        votes = kept * torch.tensor(weight).view(-1, *[1] * (delta.dim() - 1))
        return get_mask(votes)

    def merge(_: str, delta: Tensor) -> Tensor:
        return merge_one("ties", delta, density=density, weight=weight, **more)

    return merged(deltas, merge) | masked(deltas, selected)


def breadcrumbs(
    deltas: Deltas, *, density: float, gamma: float, weight: tuple[float, ...], **more: object
) -> Deltas:
    def selected(_: str, delta: Tensor) -> list[Tensor]:
        return [magnitude_outliers(part, density, gamma=gamma) for part in delta]

    def merge(_: str, delta: Tensor) -> Tensor:
        settings = {"density": density, "gamma": gamma, "weight": weight, **more}
        return merge_one("breadcrumbs", delta, **settings)

    return merged(deltas, merge) | masked(deltas, selected)


def dare(
    deltas: Deltas, *, density: float, weight: tuple[float, ...], seed: int, **more: object
) -> Deltas:
    """One task at a time, under the draw that the task and the tensor have."""

    def draw(task: str, name: str) -> None:
        torch.manual_seed(generator(seed, task, name).initial_seed())

    def part(task: str, name: str, delta: Tensor, number: float) -> Tensor:
        draw(task, name)
        return merge_one("dare_linear", delta[None], density=density, weight=number, **more)

    def merge(name: str, delta: Tensor) -> Tensor:
        parts = zip(tasks(deltas), delta, weight, strict=True)
        return sum(part(task, name, d, number) for task, d, number in parts)

    def selected(name: str, delta: Tensor) -> Iterable[Tensor]:
        for task, d in zip(tasks(deltas), delta, strict=True):
            draw(task, name)
            yield bernoulli(d, density)

    return merged(deltas, merge) | masked(deltas, lambda n, d: list(selected(n, d)))
