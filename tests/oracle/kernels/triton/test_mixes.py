"""Composed products, written weights and embedding rows."""

import pytest
import torch

from taskmix_composer.kernels.device import looped
from taskmix_composer.kernels.device.blends import Blends
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.ops import select
from tests.oracle.kernels.triton.cases import (
    BATCHES,
    CODINGS,
    SAMPLE,
    TOLERANCE,
    Batch,
    Coding,
    assert_near,
    random_rows,
    random_slots,
)

DTYPES = sorted(TOLERANCE, key=str)
# The rows of each group, and its slots.
GROUPS = {
    "none": ([], []),
    "one-row": ([[2]], [[1]]),
    "one-mix": ([[0, 1, 2, 3, 4, 5]], [[0, 1, 2]]),
    "several": ([[0, 3, 5], [1], [4]], [[0, 1], [2, 2, 1], []]),
    "no-rows": ([[], [1, 2]], [[0], [2]]),
}


def blends(name: str, device: torch.device, *, is_zero: bool = False) -> Blends:
    rows, slots = GROUPS[name]
    num_terms = sum(map(len, slots))
    found = Blends.allocate(90, len(rows) + 1, num_terms + 3, 2, device)
    generator = torch.Generator().manual_seed(4)
    coefficients = torch.rand(2, num_terms, generator=generator) * 2 - 1
    found.fill(rows, slots, coefficients * (not is_zero))
    return found


def check_composed(slots: DeltaSlots, groups: Blends, num_rows: int, dtype: torch.dtype) -> None:
    device = slots.words.device
    x = random_rows(num_rows, slots.columns, dtype, device)
    y = random_rows(num_rows, slots.rows, dtype, device)
    expected = y.float()
    looped.add_composed(expected, x, slots, groups)
    select("triton").add_composed(y, x, slots, groups)
    assert_near(y, expected, rounded_weights=True)


def check_weights(slots: DeltaSlots, groups: Blends, dtype: torch.dtype) -> None:
    device = slots.words.device
    base = random_rows(slots.rows, slots.columns, dtype, device)
    expected = torch.empty(slots.rows, slots.columns, device=device)
    looped.add_weights(expected, base.float(), slots, groups)
    out = torch.full_like(base, torch.nan)
    ops = select("triton")
    ops.add_weights(out, base, slots, groups)
    assert_near(out, expected)
    ops.merge_weights(base, slots, groups)
    assert torch.equal(base, out)


def check_lookups(slots: DeltaSlots, batch: Batch, dtype: torch.dtype) -> None:
    device = slots.words.device
    routes = batch.routes(device)
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(0, slots.rows, (batch.num_rows,), generator=generator).to(device)
    y = random_rows(batch.num_rows, slots.columns, dtype, device)
    expected = y.float()
    looped.add_lookups(expected, ids, slots, routes)
    select("triton").add_lookups(y, ids, slots, routes)
    assert_near(y, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_composed(coding: Coding, dtype: torch.dtype, device: torch.device) -> None:
    check_composed(random_slots(coding, (100, 300), device), blends("several", device), 6, dtype)


@pytest.mark.parametrize("name", GROUPS)
def test_composed_groups(name: str, device: torch.device) -> None:
    slots = random_slots(Coding(4, 64), (70, 290), device)
    check_composed(slots, blends(name, device), 6, torch.bfloat16)


def test_composed_deltas_of_any_size_keep_their_precision(device: torch.device) -> None:
    slots = random_slots(Coding(4, 64), (70, 290), device)
    slots.row_scales.mul_(1e-7)
    groups = blends("one-mix", device)
    x = random_rows(6, slots.columns, torch.float16, device)
    y = torch.zeros(6, slots.rows, dtype=torch.float16, device=device)
    expected = y.float()
    groups.coefficients.mul_(1e7)
    looped.add_composed(expected, x, slots, groups)
    select("triton").add_composed(y, x, slots, groups)
    assert_near(y, expected, rounded_weights=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_weights(coding: Coding, dtype: torch.dtype, device: torch.device) -> None:
    check_weights(random_slots(coding, (100, 300), device), blends("several", device), dtype)


@pytest.mark.parametrize("shape", [(1, 32), (64, 256), (130, 513)], ids=str)
def test_weights_of_every_shape(shape: tuple[int, int], device: torch.device) -> None:
    slots = random_slots(Coding(2, 64), shape, device)
    check_weights(slots, blends("one-mix", device), torch.bfloat16)
    check_weights(slots, blends("one-mix", device, is_zero=True), torch.bfloat16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_lookups(coding: Coding, dtype: torch.dtype, device: torch.device) -> None:
    check_lookups(random_slots(coding, (100, 300), device), BATCHES["some-rows"], dtype)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_lookups_of_every_batch(batch: Batch, device: torch.device) -> None:
    check_lookups(random_slots(Coding(0, 64), (70, 290), device), batch, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coding", SAMPLE, ids=str)
def test_served_shapes(coding: Coding, dtype: torch.dtype, device: torch.device) -> None:
    slots = random_slots(coding, (6144, 4096), device)
    groups = Blends.allocate(512, 4, 8, 2, device)
    rows = [list(range(300)), list(range(300, 363)), list(range(363, 512))]
    groups.fill(rows, [[0, 1], [2], [2, 1, 0]], torch.rand(2, 6) * 2 - 1)
    check_composed(slots, groups, 512, dtype)
    check_weights(slots, groups, dtype)
    check_lookups(slots, Batch(64, ((0, tuple(range(64))), (2, tuple(range(0, 64, 3))))), dtype)
