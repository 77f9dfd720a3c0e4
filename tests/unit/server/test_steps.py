"""Step plans against loops: which rows use which task, with which coefficients."""

import random

import numpy as np
import pytest
import torch

from taskmix_server.engine.vllm.deltas import MaskedTask
from taskmix_server.engine.vllm.slots import Slots
from taskmix_server.engine.vllm.steps import IDLE, NO_TASKS, Planner, ResidentVariant, RowPlan

NUM_TENSORS = 3
TASKS = tuple(MaskedTask(f"task{index}", (), {}, 0) for index in range(5))


def planner(*tasks: MaskedTask) -> Planner:
    return Planner(NUM_TENSORS, torch.device("cpu"), Slots(tasks or TASKS))


def variant(**coefficients: float) -> ResidentVariant:
    """A variant from coefficients by task; tensor t has the coefficient plus t."""
    by_name = {task.digest: task for task in TASKS}
    steps = torch.arange(NUM_TENSORS, dtype=torch.float32)
    return ResidentVariant(
        tuple((by_name[name], value + steps) for name, value in coefficients.items())
    )


def found_pairs(plan: RowPlan) -> dict[tuple[str, int], list[float]]:
    """Coefficients by (task, row), as kernels read them."""
    starts, rows = plan.pairs.starts.tolist(), plan.pairs.rows.tolist()
    found = {}
    for slot, task in enumerate(plan.slots.tasks):
        for pair in range(starts[slot], starts[slot + 1]):
            found[task.digest, rows[pair]] = plan.pairs.coefficients[:, pair].tolist()
    assert len(found) == len(rows) == starts[-1], "a pair is there twice"
    return found


def used_pairs(plan: RowPlan) -> dict[tuple[str, int], list[float]]:
    """The same as the torch path reads them."""
    found = {}
    for use in plan.uses:
        rows = range(plan.num_rows) if use.rows is None else use.rows.tolist()
        for row, coefficients in zip(rows, use.coefficients.T.tolist(), strict=True):
            found[use.task.digest, row] = coefficients
    return found


def expected_pairs(
    row_ids: list[int], variants: dict[int, ResidentVariant]
) -> dict[tuple[str, int], list[float]]:
    return {
        (task.digest, row): coefficients.tolist()
        for row, identity in enumerate(row_ids)
        for task, coefficients in variants.get(identity, NO_TASKS).tasks
    }


@pytest.mark.parametrize("seed", range(20))
def test_a_plan_pairs_every_row_with_its_tasks(seed: int) -> None:
    draw = random.Random(seed)
    variants = {
        identity: variant(
            **{task.digest: draw.random() for task in draw.sample(TASKS, draw.randrange(4))}
        )
        for identity in range(1, 6)
    }
    row_ids = [draw.randrange(7) for _ in range(draw.randrange(1, 40))]
    plan = planner().rows(np.asarray(row_ids), variants)
    expected = expected_pairs(row_ids, variants)
    if not expected:
        assert plan is None
        return
    assert plan is not None
    assert found_pairs(plan) == expected
    assert used_pairs(plan) == expected
    mixed = sorted({row for _, row in expected})
    assert (list(range(len(row_ids))) if plan.rows is None else plan.rows.tolist()) == mixed
    for row, index in enumerate(plan.variant_of_row.tolist()):
        own = dict(variants.get(row_ids[row], NO_TASKS).tasks)
        for number, use in enumerate(plan.uses):
            wanted = own.get(use.task, torch.zeros(NUM_TENSORS))
            assert torch.equal(plan.coefficients[:, index, number], wanted)


def test_pairs_are_made_for_kernels() -> None:
    plan = planner().rows(np.asarray([2, 0, 1, 2]), {1: variant(task4=1.0), 2: variant(task1=0.5)})
    assert plan is not None
    assert plan.pairs.starts.tolist() == [0, 0, 2, 2, 2, 3]
    assert plan.pairs.rows.tolist() == [0, 3, 2]
    assert plan.pairs.starts.dtype == plan.pairs.rows.dtype == torch.int32
    assert plan.pairs.coefficients.dtype == torch.float32


def test_one_variant_for_all_rows_is_sole() -> None:
    mix = variant(task0=1.0)
    both = {1: mix, 2: variant(task0=2.0)}
    assert planner().rows(np.asarray([1, 1, 1]), both).sole is mix  # type: ignore[union-attr]
    assert planner().rows(np.asarray([1, 2, 1]), both).sole is None  # type: ignore[union-attr]
    assert planner().rows(np.asarray([1, 0, 1]), both).sole is None  # type: ignore[union-attr]


def test_a_step_without_tasks_is_idle() -> None:
    assert planner().step([0, 0], [0], {}) is IDLE
    assert planner().step([3, 3], [3], {3: NO_TASKS}) is IDLE


def test_samples_have_a_plan_of_their_own() -> None:
    step = planner().step([1, 1, 0, 0], [0, 1], {1: variant(task2=1.0)})
    assert step.tokens is not None
    assert step.samples is not None
    assert step.tokens.pairs.rows.tolist() == [0, 1]
    assert step.samples.pairs.rows.tolist() == [1]


def test_rows_of_a_kind_that_use_nothing_have_no_plan() -> None:
    step = planner().step([1, 0], [0], {1: variant(task2=1.0)})
    assert step.tokens is not None
    assert step.samples is None
