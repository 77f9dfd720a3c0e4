"""What the serving benchmark asks: the batches are what its tables say they are."""

from collections import Counter

import pytest

from benchmarks.growth import pair, spaced
from benchmarks.workloads import (
    BASE,
    NUM_ROWS,
    PROMPT_TOKENS,
    SIXTEEN_MIXES,
    VOCABULARY,
    WORKLOADS,
    groups,
    over_tasks,
    prompts,
)
from taskmix_composer.mix import Mix


@pytest.mark.parametrize(
    ("name", "num_mixes", "num_tasks", "num_pairs"),
    [
        ("idle", 1, 0, 0),
        ("one_mix", 1, 2, 64),
        ("sixteen_mixes", 16, 8, 64),
        ("half_single", 16, 8, 48),
        ("all_single", 16, 8, 32),
    ],
)
def test_a_workload_is_what_its_name_says(name, num_mixes, num_tasks, num_pairs):
    (workload,) = (one for one in WORKLOADS if one.name == name)
    rows = Counter(Mix.parse(row) for row in workload.rows)
    assert len(rows) == num_mixes
    assert set(rows.values()) == {NUM_ROWS // num_mixes}
    assert (workload.num_tasks, workload.num_pairs) == (num_tasks, num_pairs)


def test_the_idle_bank_is_asked_for_the_base():
    assert Mix.parse(BASE) == Mix.of({})


def test_sixteen_mixes_use_every_task_alike():
    uses = Counter(task for row in SIXTEEN_MIXES.rows for task in Mix.parse(row).tasks)
    assert set(uses.values()) == {SIXTEEN_MIXES.num_pairs // SIXTEEN_MIXES.num_tasks}


@pytest.mark.parametrize("num_tasks", [1, 8, 32])
def test_growth_gives_each_row_a_mix_of_its_own(num_tasks):
    workload = over_tasks(num_tasks)
    assert len({Mix.parse(row) for row in workload.rows}) == NUM_ROWS
    assert (workload.num_tasks, workload.num_pairs) == (num_tasks, NUM_ROWS)


def test_each_registered_mix_is_another_one_of_two_tasks():
    mixes = {Mix.of(pair(index)) for index in range(10_000)}
    assert len(mixes) == 10_000
    assert {len(mix.tasks) for mix in mixes} == {2}


def test_named_mixes_are_spread_over_all():
    assert spaced(16, 16) == list(range(16))
    assert spaced(100, 4) == [24, 49, 74, 99]


def test_a_group_holds_the_rows_of_one_mix():
    assert groups(["a", "b", "a"]) == {"a": [0, 2], "b": [1]}


def test_prompts_are_repeatable_and_differ_between_rounds():
    assert prompts(1) == prompts(1)
    assert prompts(1) != prompts(2)
    assert len({tuple(prompt) for prompt in prompts(1)}) == NUM_ROWS
    assert {len(prompt) for prompt in prompts(1)} == {PROMPT_TOKENS}
    assert all(0 <= token < VOCABULARY for prompt in prompts(1) for token in prompt)
