"""Separable products: packed deltas, masks over a shared vector, and low-rank ones."""

import pytest
import torch

from taskmix_composer.kernels.device import looped
from taskmix_composer.kernels.device.factors import FactorSlots
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
    random_factors,
    random_rows,
    random_slots,
)

SHAPES = [(1, 32), (64, 256), (100, 300), (130, 520)]
SERVED = [(4096, 4096), (6144, 4096), (4099, 14336)]
SERVED_BATCH = Batch(
    64, tuple((index % 3, tuple(range(index, 64, 1 + index % 4))) for index in range(8))
)
DTYPES = sorted(TOLERANCE, key=str)


def check(slots: DeltaSlots | FactorSlots, batch: Batch, dtype: torch.dtype) -> None:
    """The compiled sum against the looped one."""
    device = slots.row_scales.device
    routes = batch.routes(device)
    x = random_rows(batch.num_rows, slots.columns, dtype, device)
    y = random_rows(batch.num_rows, slots.rows, dtype, device)
    expected = y.float()
    looped.add_products(expected, x, slots, routes)
    untouched = [row for row in range(len(y)) if not any(row in rows for _, rows in batch.tasks)]
    before = y[untouched].clone()
    ops = select("triton")
    add = ops.add_lowrank if isinstance(slots, FactorSlots) else ops.add_products
    add(y, x, slots, routes)
    assert_near(y, expected)
    assert torch.equal(y[untouched], before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_every_coding(coding: Coding, dtype: torch.dtype, device: torch.device) -> None:
    check(random_slots(coding, (100, 300), device), BATCHES["some-rows"], dtype)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("coding", [Coding(4, 64), Coding(0, 64)], ids=str)
def test_every_batch(coding: Coding, batch: Batch, device: torch.device) -> None:
    check(random_slots(coding, (70, 290), device), batch, torch.bfloat16)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("coding", SAMPLE, ids=str)
def test_every_shape(coding: Coding, shape: tuple[int, int], device: torch.device) -> None:
    check(random_slots(coding, shape, device), BATCHES["all-rows"], torch.float16)


@pytest.mark.parametrize("coding", [Coding(4, 64), Coding(0, 64)], ids=str)
def test_an_empty_slot_adds_nothing_and_is_not_read(coding: Coding, device: torch.device) -> None:
    slots = random_slots(coding, (70, 290), device)
    slots.clear(1)
    slots.row_scales[1] = torch.nan
    check(slots, BATCHES["some-rows"], torch.bfloat16)


def test_equal_batches_give_equal_bits(device: torch.device) -> None:
    slots, batch = random_slots(Coding(4, 64), (130, 520), device), BATCHES["some-rows"]
    x = random_rows(batch.num_rows, slots.columns, torch.float16, device)
    results = []
    for _ in range(2):
        y = torch.zeros(batch.num_rows, slots.rows, dtype=torch.float16, device=device)
        select("triton").add_products(y, x, slots, batch.routes(device))
        results.append(y)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rank", [3, 16, 70])
def test_low_rank(rank: int, dtype: torch.dtype, device: torch.device) -> None:
    check(random_factors(rank, (100, 300), dtype, device), BATCHES["some-rows"], dtype)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_low_rank_batches(batch: Batch, device: torch.device) -> None:
    check(random_factors(8, (70, 290), torch.bfloat16, device), batch, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SERVED, ids=str)
@pytest.mark.parametrize("coding", CODINGS, ids=str)
def test_served_shapes(
    coding: Coding, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    check(random_slots(coding, shape, device), SERVED_BATCH, dtype)


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize("num_rows", [1, 8, 16, 17, 32, 33, 128, 512])
def test_batches_of_every_size(num_rows: int, device: torch.device) -> None:
    tasks = tuple((index % 3, tuple(range(index % num_rows, num_rows, 3))) for index in range(4))
    check(random_slots(Coding(4, 64), (1088, 1024), device), Batch(num_rows, tasks), torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("rank", [16, 64])
def test_served_low_rank(rank: int, device: torch.device) -> None:
    check(random_factors(rank, (6144, 4096), torch.bfloat16, device), SERVED_BATCH, torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("coding", SAMPLE, ids=str)
def test_one_graph_serves_every_batch(coding: Coding, device: torch.device) -> None:
    slots = random_slots(coding, (192, 512), device)
    largest = Batch(16, tuple((index % 3, tuple(range(16))) for index in range(6)))
    routes = largest.routes(device)
    x = random_rows(16, slots.columns, torch.bfloat16, device)
    y = torch.zeros(16, slots.rows, dtype=torch.bfloat16, device=device)
    ops = select("triton")
    ops.add_products(y, x, slots, routes)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ops.add_products(y, x, slots, routes)
    for batch in (Batch(16, ()), Batch(16, ((1, (3, 9)), (0, (0, 3)))), largest):
        counts = [len(rows) for _, rows in batch.tasks]
        starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
        rows = torch.tensor([row for _, rows in batch.tasks for row in rows], dtype=torch.int32)
        routes.fill([slot for slot, _ in batch.tasks], starts, rows, torch.rand(2, len(rows)))
        y.zero_()
        expected = y.float()
        looped.add_products(expected, x, slots, routes)
        graph.replay()
        assert_near(y, expected)
