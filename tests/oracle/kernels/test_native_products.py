"""y += coefficient * (x @ weight.T) for packed deltas of every kind."""

import threading

import pytest
import torch
from torch import Tensor

from taskmix_composer.kernels import reference
from taskmix_composer.kernels.native.library import Level
from taskmix_composer.kernels.native.packing import cut, pack
from taskmix_composer.kernels.products import OperandError, Pairs, Part, PartTable, add_products
from taskmix_composer.kernels.reference import ReferencePart
from taskmix_composer.layout import pack_codes
from tests.oracle.kernels.native_cases import (
    HALF_ULP,
    KINDS,
    SMALLEST,
    Batch,
    int8_deviations,
    kernels_at,
    magnitudes,
    table_of,
)

LEVELS = list(Level)
SHAPES = [(37, 70), (64, 128), (1, 1), (33, 800), (100, 1600)]
# Products under int8 inputs: this many standard deviations of the sum of their rounding errors,
# taken as uniform and independent. A sum of many is normal; that of a few has shorter tails.
NUM_DEVIATIONS = 7.0
BATCHES = {
    "one row": Batch(1, [1, 1]),
    "one task": Batch(5, [5]),
    "two tasks": Batch(9, [9, 4]),
    "many rows": Batch(40, [33, 17]),
    "no pairs": Batch(3, [0, 0]),
    "a task without rows": Batch(4, [0, 4]),
    "a row many times": Batch(2, [9, 9]),
    "zeros": Batch(4, [4, 4], are_zero=True),
}


def inputs(num_rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Inputs with columns of different size, in rows that are not adjacent."""
    generator = torch.Generator().manual_seed(5)
    wide = torch.randn(num_rows, columns + 3, generator=generator)
    wide *= torch.exp(torch.randn(columns + 3, generator=generator))
    return wide.to(dtype)[:, :columns]


def outputs(num_rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    wide = torch.randn(num_rows, columns + 5, generator=generator) * 1e-2
    return wide.to(dtype)[:, :columns]


def tolerance(
    y: Tensor, x: Tensor, parts: list[ReferencePart], pairs: Pairs, is_int8: bool
) -> Tensor:
    """How far each output may be off, float32 [rows, outputs].

    In float32 each of the sums' roundings is off by half an ulp of at most the sum of magnitudes;
    the result is rounded to y's dtype once. Inputs in int8 add errors of their own.
    """
    sums = y.float().abs() + magnitudes(x, parts, pairs, y.shape[1])
    num_roundings = 8 + x.shape[1] + len(pairs.rows)
    relative = num_roundings * HALF_ULP[torch.float32] + HALF_ULP[y.dtype]
    allowed = sums * relative + SMALLEST[y.dtype]
    if is_int8:
        allowed += NUM_DEVIATIONS * int8_deviations(x, parts, pairs, y.shape[1])
    return allowed


def check(
    parts: list[ReferencePart],
    shape: tuple[int, int],
    pairs: Pairs,
    level: Level,
    dtypes: tuple[torch.dtype, torch.dtype],
    is_exact: bool,
    num_rows: int,
) -> None:
    kernels = kernels_at(level)
    x = inputs(num_rows, shape[1], dtypes[0])
    y = outputs(num_rows, shape[0], dtypes[1])
    arguments = (pairs.starts, pairs.rows, pairs.coefficients)
    expected = reference.add_products(y, x, parts, *arguments)
    is_int8 = level is Level.AVX512 and not is_exact and dtypes[0] is not torch.float32
    allowed = tolerance(y, x, parts, pairs, is_int8)
    before = y.clone()
    add_products(y, x, table_of(parts, shape), pairs, is_exact=is_exact, kernels=kernels)
    assert ((y.float() - expected).abs() <= allowed).all()
    untouched = torch.ones(num_rows, dtype=torch.bool)
    untouched[pairs.rows.long()] = False
    torch.testing.assert_close(y[untouched], before[untouched], rtol=0, atol=0)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("is_exact", [False, True], ids=["fast", "exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_every_shape(kind: str, is_exact: bool, level: Level) -> None:
    for shape in SHAPES:
        parts = [ReferencePart(KINDS[kind](shape, task), task, 0, 0) for task in range(2)]
        pairs = Batch(9, [9, 4]).pairs()
        check(parts, shape, pairs, level, (torch.bfloat16, torch.float32), is_exact, 9)


@pytest.mark.parametrize("num_threads", [2], indirect=True)
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", HALF_ULP, ids=str)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_batch_in_every_dtype(batch: str, dtype: torch.dtype, level: Level) -> None:
    shape, rows = (96, 70), BATCHES[batch]
    kinds = ("int4", "mask over int4")
    parts = [
        ReferencePart(KINDS[kinds[task % 2]](shape, task), task, 0, 0)
        for task in range(len(rows.sizes))
    ]
    check(parts, shape, rows.pairs(), level, (dtype, dtype), False, rows.num_rows)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("is_exact", [False, True], ids=["fast", "exact"])
def test_segments_with_columns_of_their_own(is_exact: bool, level: Level) -> None:
    """Three segments, one of them of odd size, and a row-sparse delta across none of them."""
    segments = [(0, 40, 0), (40, 33, 1), (80, 64, 2)]
    parts = [
        ReferencePart(KINDS[kind]((size, 70), task), task, start, column)
        for task, kind in enumerate(("int4", "sign(salient=0.2)", "rows of int4"))
        for start, size, column in segments
    ]
    pairs = Batch(6, [3, 2, 4], num_columns=3).pairs()
    check(parts, (150, 70), pairs, level, (torch.bfloat16, torch.float32), is_exact, 6)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_parts_that_overlap(level: Level) -> None:
    places = [(0, 64), (32, 64), (10, 20), (0, 64), (100, 20)]
    parts = [
        ReferencePart(KINDS["int4"]((size, 70), index), index % 2, start, 0)
        for index, (start, size) in enumerate(places)
    ]
    pairs = Batch(5, [5, 3]).pairs()
    check(parts, (130, 70), pairs, level, (torch.bfloat16, torch.float32), False, 5)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("kind", ["int4", "sign(salient=0.2)", "sparse(density=0.3,bits=2)"])
@pytest.mark.parametrize("is_exact", [False, True], ids=["fast", "exact"])
def test_a_cut_keeps_what_all_its_masks_keep(kind: str, is_exact: bool, level: Level) -> None:
    shape = (50, 800)
    delta = KINDS[kind](shape, 0)
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(shape, generator=generator) < density for density in (0.5, 0.6))
    whole = pack(delta)
    assert whole is not None
    cuts = [cut(cut(part, _of_rows(first, part)), _of_rows(second, part)) for part in whole]
    table = PartTable.of([Part(part, 0, 0, 0) for part in cuts], *shape)
    mask = pack_codes((first & second).to(torch.uint8), 1)
    expected = ReferencePart(
        type(delta)("masked", shape, {"scale": 1.0}, {"mask": mask}, shared=delta), 0, 0, 0
    )
    x, y = inputs(4, 800, torch.bfloat16), torch.zeros(4, 50)
    pairs = Batch(4, [4]).pairs()
    is_int8 = level is Level.AVX512 and not is_exact
    allowed = tolerance(y, x, [expected], pairs, is_int8)
    arguments = (pairs.starts, pairs.rows, pairs.coefficients)
    wanted = reference.add_products(y, x, [expected], *arguments)
    add_products(y, x, table, pairs, is_exact=is_exact, kernels=kernels_at(level))
    assert ((y - wanted).abs() <= allowed).all()
    assert sum(part.num_bytes for part in cuts) < sum(part.num_bytes for part in whole)


def _of_rows(mask: Tensor, part: object) -> Tensor:
    rows = getattr(part, "rows", None)
    return mask if rows is None else mask[rows.long()]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_what_did_not_change_adds_nothing_at_all(level: Level) -> None:
    """A weight whose code is the zero is worth exactly 0, and -0 in y stays -0."""
    delta = KINDS["int4"]((64, 128), 0)
    zeros = delta.parts["zeros"]
    codes = zeros.repeat_interleave(64, dim=1)[:, :128]
    parts = {**delta.parts, "codes": pack_codes(codes, 4)}
    silent = type(delta)(delta.codec, delta.shape, delta.params, parts)
    y = torch.full((3, 64), -0.0, dtype=torch.bfloat16)
    table = table_of([ReferencePart(silent, 0, 0, 0)], (64, 128))
    x = inputs(3, 128, torch.bfloat16)
    add_products(y, x, table, Batch(3, [3]).pairs(), kernels=kernels_at(level))
    assert (y == 0).all()
    assert torch.signbit(y).all()


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_show(poison: float, level: Level) -> None:
    table = table_of([ReferencePart(KINDS["int4"]((32, 128), 0), 0, 0, 0)], (32, 128))
    x, y = inputs(2, 128, torch.bfloat16), torch.zeros(2, 32)
    x[1, 70] = poison
    starts, rows = torch.tensor([0, 2]), torch.tensor([0, 1])
    pairs = Pairs(starts.to(torch.int32), rows.to(torch.int32), torch.ones(1, 2))
    add_products(y, x, table, pairs, kernels=kernels_at(level))
    assert torch.isfinite(y[0]).all()
    assert not torch.isfinite(y[1]).any()


@pytest.mark.parametrize("num_threads", [1, 2], indirect=True)
@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_two_threads_at_once(level: Level) -> None:
    """Calls of different sizes, side by side, give what they give alone."""
    kernels = kernels_at(level)
    jobs = []
    for index, shape in enumerate([(96, 800), (320, 70)]):
        parts = [ReferencePart(KINDS["mask over int4"](shape, task), task, 0, 0) for task in (0, 1)]
        batch = Batch(9 + 20 * index, [9, 20])
        x = inputs(batch.num_rows, shape[1], torch.bfloat16)
        jobs.append((table_of(parts, shape), batch.pairs(), x, shape))

    def run(job: int) -> Tensor:
        table, pairs, x, shape = jobs[job]
        y = torch.zeros(len(x), shape[0])
        add_products(y, x, table, pairs, kernels=kernels)
        return y

    alone = [run(0), run(1)]
    found: list[list[Tensor]] = [[], []]
    threads = [
        threading.Thread(target=lambda job=job: found[job].extend(run(job) for _ in range(50)))
        for job in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for job in (0, 1):
        assert len(found[job]) == 50
        assert all(torch.equal(each, alone[job]) for each in found[job])


def test_operands_that_do_not_fit_are_refused() -> None:
    table = table_of([ReferencePart(KINDS["int4"]((32, 64), 0), 1, 0, 1)], (32, 64))
    good = Batch(2, [1, 1], num_columns=2).pairs()
    x, y = torch.zeros(2, 64), torch.zeros(2, 32)
    wrong = {
        "too few columns of x": (y, x[:, :63], good),
        "too few outputs": (y[:, :31], x, good),
        "rows that are missing": (y[:1], x[:1], good),
        "different rows": (y[:1], x, good),
        "a task that is missing": (y, x, Batch(2, [2], num_columns=2).pairs()),
        "a column that is missing": (y, x, Batch(2, [1, 1]).pairs()),
        "float64": (y.double(), x, good),
        "columns apart": (y, torch.zeros(64, 2).T, good),
    }
    kernels_at(Level.AVX2)
    for bad_y, bad_x, pairs in wrong.values():
        with pytest.raises(OperandError):
            add_products(bad_y, bad_x, table, pairs)
    with pytest.raises(OperandError, match="does not fit"):
        PartTable.of(table.parts, 31, 64)
    with pytest.raises(OperandError, match="must not be negative"):
        Part(table.parts[0].delta, 0, -1, 0)
    starts, rows = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
    for bad in (
        (starts.long(), rows, torch.ones(1, 1)),
        (starts, rows, torch.ones(1, 2)),
        (starts.flip(0), rows, torch.ones(1, 1)),
        (starts, -rows - 1, torch.ones(1, 1)),
    ):
        with pytest.raises(OperandError):
            Pairs(*bad)
