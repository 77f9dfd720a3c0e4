import itertools
import math
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmix_composer.budget import Choice, chosen, lower_hull
from taskmix_composer.config import Scheme
from taskmix_composer.errors import InvalidPlanError

SCHEME = Scheme("int4")
Choices = Mapping[str, Sequence[Choice]]


def choice(num_bytes: int, error: float) -> Choice:
    return Choice(SCHEME, num_bytes, error)


def tensors(max_tensors: int) -> st.SearchStrategy[Choices]:
    # Whole errors add up without rounding.
    one = st.builds(choice, st.integers(0, 40), st.integers(0, 40).map(float))
    return st.dictionaries(
        st.sampled_from("abcdef"),
        st.lists(one, min_size=1, max_size=5),
        min_size=1,
        max_size=max_tensors,
    )


def total_bytes(taken: Mapping[str, Choice]) -> int:
    return sum(own.num_bytes for own in taken.values())


def total_error(taken: Mapping[str, Choice]) -> float:
    return sum(own.error for own in taken.values())


def best_error(choices: Choices, budget_bytes: int) -> float:
    """The least error of all combinations that fit."""
    return min(
        sum(own.error for own in combination)
        for combination in itertools.product(*choices.values())
        if sum(own.num_bytes for own in combination) <= budget_bytes
    )


def smallest(choices: Choices) -> int:
    return sum(min(own.num_bytes for own in found) for found in choices.values())


@given(tensors(4), st.integers(0, 80))
def test_a_plan_fits_and_is_one_step_from_the_best(choices: Choices, spare: int) -> None:
    budget = smallest(choices) + spare
    taken = chosen(choices, budget)
    assert taken.keys() == choices.keys()
    assert all(own in choices[key] for key, own in taken.items())
    assert total_bytes(taken) <= budget
    hulls = [lower_hull(found) for found in choices.values()]
    largest_step = max(
        (a.error - b.error for hull in hulls for a, b in itertools.pairwise(hull)), default=0.0
    )
    best = best_error(choices, budget)
    assert best <= total_error(taken) <= best + largest_step


@given(tensors(4))
def test_the_best_plan_is_found_where_no_step_is_cut_short(choices: Choices) -> None:
    budget = smallest(choices)
    for _ in range(4):
        taken = chosen(choices, budget)
        if total_bytes(taken) == budget and _is_unspoilt(choices, taken):
            assert total_error(taken) == best_error(choices, budget)
        budget += 7


def _is_unspoilt(choices: Choices, taken: Mapping[str, Choice]) -> bool:
    """Whether every step taken saves as much per byte as any that was not."""
    worst_taken, best_left = math.inf, 0.0
    for key, own in taken.items():
        for before, after in itertools.pairwise(lower_hull(choices[key])):
            rate = (before.error - after.error) / (after.num_bytes - before.num_bytes)
            if after.num_bytes <= own.num_bytes:
                worst_taken = min(worst_taken, rate)
            else:
                best_left = max(best_left, rate)
    return worst_taken >= best_left


@given(tensors(6), st.integers(0, 100), st.integers(0, 100))
def test_a_larger_budget_never_leaves_a_larger_error(
    choices: Choices, spare: int, more: int
) -> None:
    budget = smallest(choices) + spare
    less, greater = chosen(choices, budget), chosen(choices, budget + more)
    assert total_error(greater) <= total_error(less)


@given(st.lists(st.builds(choice, st.integers(0, 30), st.integers(0, 30).map(float)), min_size=1))
def test_a_hull_is_convex_and_below_every_choice(found: list[Choice]) -> None:
    hull = lower_hull(found)
    assert hull[0].num_bytes == min(own.num_bytes for own in found)
    assert hull[-1].error == min(own.error for own in found)
    steps = [(b.num_bytes - a.num_bytes, a.error - b.error) for a, b in itertools.pairwise(hull)]
    assert all(num_bytes > 0 and saving > 0 for num_bytes, saving in steps)
    for (bytes_a, saving_a), (bytes_b, saving_b) in itertools.pairwise(steps):
        assert saving_a * bytes_b > saving_b * bytes_a
    for own in found:
        for a, b in itertools.pairwise(hull):
            if a.num_bytes <= own.num_bytes <= b.num_bytes:
                above = (own.error - a.error) * (b.num_bytes - a.num_bytes)
                assert above >= (b.error - a.error) * (own.num_bytes - a.num_bytes)


def test_what_does_not_fit_leaves_room_for_others() -> None:
    choices = {"large": [choice(0, 10.0), choice(9, 0.0)], "small": [choice(0, 1.0), choice(2, 0)]}
    taken = chosen(choices, 8)
    assert taken["large"].num_bytes == 0
    assert taken["small"].num_bytes == 2


def test_a_budget_that_is_too_small_names_the_smallest() -> None:
    choices = {"norm": [choice(40, 0.0)], "matrix": [choice(0, 1.0), choice(50, 0.5)]}
    with pytest.raises(InvalidPlanError, match="47 are needed"):
        chosen(choices, 46, overhead_bytes=7)
    assert total_bytes(chosen(choices, 47, overhead_bytes=7)) == 40
    assert total_bytes(chosen(choices, 96, overhead_bytes=7)) == 40
    assert total_bytes(chosen(choices, 97, overhead_bytes=7)) == 90


def test_nothing_to_choose_is_a_plan() -> None:
    assert chosen({}, 0) == {}
