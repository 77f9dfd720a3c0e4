"""Which scheme each tensor gets, so that all of them fit a budget and lose as little as possible.

Every tensor has choices of some size and error. Those on the lower convex hull of size and error
are steps that each save less error per byte than the one before. All steps of all tensors are
taken in the order of what they save per byte; one that no longer fits ends its own tensor's steps.
Were steps divisible, this would be the optimum (the continuous knapsack), so what it loses is
less than what the first step that did not fit would have saved. And because no later step saves
more per byte than an earlier one, a larger budget never leaves a larger error.
"""

import itertools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from taskmix_composer.config import Scheme
from taskmix_composer.errors import InvalidPlanError

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Choice:
    """A way to store a delta: its bytes in the shard and what it loses, not negative.

    A scheme of None leaves the delta out.
    """

    scheme: Scheme | None
    num_bytes: int
    error: float


@dataclass(frozen=True, slots=True)
class _Step:
    """From one choice of a tensor to its next larger one."""

    choice: Choice
    num_bytes: int
    saving: float

    @property
    def rate(self) -> float:
        """Error saved per byte."""
        return self.saving / self.num_bytes


def chosen(
    choices: Mapping[Key, Sequence[Choice]], budget_bytes: int, overhead_bytes: int = 0
) -> dict[Key, Choice]:
    """One choice for each key; with the overhead they have `budget_bytes` at most.

    InvalidPlanError if even the smallest choices have more.
    """
    hulls = {key: lower_hull(own) for key, own in choices.items()}
    taken = {key: hull[0] for key, hull in hulls.items()}
    smallest = overhead_bytes + sum(choice.num_bytes for choice in taken.values())
    if smallest > budget_bytes:
        raise InvalidPlanError(
            f"a budget of {budget_bytes} bytes is too small: {smallest} are needed even if all "
            "that can be left out is left out; give at least that"
        )
    steps = [(step, key) for key, hull in hulls.items() for step in _steps(hull)]
    steps.sort(key=lambda item: -item[0].rate)
    remaining = budget_bytes - smallest
    ended = set()
    for step, key in steps:
        if key in ended:
            continue
        if step.num_bytes > remaining:
            ended.add(key)
            continue
        taken[key] = step.choice
        remaining -= step.num_bytes
    return taken


def lower_hull(choices: Sequence[Choice]) -> list[Choice]:
    """The corners of the lower convex hull of bytes and error, from the smallest choice on.

    Each has more bytes and less error than the one before, and saves less per byte.
    """
    hull: list[Choice] = []
    for choice in sorted(choices, key=lambda choice: (choice.num_bytes, choice.error)):
        if hull and choice.error >= hull[-1].error:
            continue
        while len(hull) > 1 and not _is_corner(hull[-2], hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _is_corner(before: Choice, middle: Choice, after: Choice) -> bool:
    """Whether the first step saves more per byte than the second."""
    first, second = _step(before, middle), _step(middle, after)
    return first.saving * second.num_bytes > second.saving * first.num_bytes


def _steps(hull: Sequence[Choice]) -> list[_Step]:
    return [_step(before, after) for before, after in itertools.pairwise(hull)]


def _step(before: Choice, after: Choice) -> _Step:
    return _Step(after, after.num_bytes - before.num_bytes, before.error - after.error)
