"""Rows and whole matrices of packed deltas, which are exact in float32."""

import pytest
import torch

from taskmix_composer.kernels import reference
from taskmix_composer.kernels.native.library import Level
from taskmix_composer.kernels.products import OperandError, PartTable, add_lookups, add_weights
from taskmix_composer.kernels.reference import ReferencePart
from tests.oracle.kernels.native_cases import HALF_ULP, KINDS, SMALLEST, Batch, kernels_at, table_of

LEVELS = list(Level)
SHAPES = [(37, 70), (1, 1), (100, 1600)]
# float32 roundings of a weight: two of its factors, two of its coefficient, one of each sum; a
# salient sign adds two parts.
NUM_ROUNDINGS = 12


def assert_close(actual: torch.Tensor, expected: torch.Tensor, scale: torch.Tensor) -> None:
    """Within the roundings of float32 sums of at most `scale`, and one to the dtype."""
    relative = NUM_ROUNDINGS * HALF_ULP[torch.float32] + HALF_ULP[actual.dtype]
    assert ((actual.float() - expected).abs() <= scale * relative + SMALLEST[actual.dtype]).all()


def two_parts(kind: str, shape: tuple[int, int]) -> list[ReferencePart]:
    return [ReferencePart(KINDS[kind](shape, task), task, 0, task) for task in range(2)]


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", HALF_ULP, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_every_kind(kind: str, dtype: torch.dtype, level: Level) -> None:
    kernels = kernels_at(level)
    for shape in SHAPES:
        parts = two_parts(kind, shape)
        coefficients = torch.tensor([0.7, -0.3])
        out = torch.randn(shape[0], shape[1] + 3).mul_(1e-2).to(dtype)[:, : shape[1]]
        expected = reference.add_weights(out, parts, coefficients)
        scale = out.float().abs() + sum(part.weight.abs() for part in parts)
        add_weights(out, table_of(parts, shape), coefficients, kernels=kernels)
        assert_close(out, expected, scale)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_weights_of_segments_and_overlaps(level: Level) -> None:
    places = [(0, 40), (40, 33), (20, 70)]
    parts = [
        ReferencePart(KINDS["int4"]((size, 70), column), 0, start, column)
        for column, (start, size) in enumerate(places)
    ]
    coefficients = torch.tensor([0.5, 2.0, -1.0])
    out = torch.zeros(101, 70)
    expected = reference.add_weights(out, parts, coefficients)
    add_weights(out, table_of(parts, (101, 70)), coefficients, kernels=kernels_at(level))
    assert_close(out, expected, 2 * expected.abs() + 1e-2)
    assert (out[90:] == 0).all()


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("kind", KINDS)
def test_one_delta_is_what_its_codec_decodes_to(kind: str, level: Level) -> None:
    part = ReferencePart(KINDS[kind]((37, 70), 3), 0, 0, 0)
    out = torch.zeros(37, 70)
    add_weights(out, table_of([part], (37, 70)), torch.ones(1), kernels=kernels_at(level))
    assert_close(out, part.weight, part.weight.abs())
    assert ((out == 0) == (part.weight == 0)).all()


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", HALF_ULP, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_lookups_of_every_kind(kind: str, dtype: torch.dtype, level: Level) -> None:
    kernels = kernels_at(level)
    for shape in SHAPES:
        parts = two_parts(kind, shape)
        pairs = Batch(20, [9, 14], num_columns=2).pairs()
        ids = torch.randint(shape[0], (20,), generator=torch.Generator().manual_seed(2))
        y = torch.randn(20, shape[1] + 3).mul_(1e-2).to(dtype)[:, : shape[1]]
        arguments = (pairs.starts, pairs.rows)
        expected = reference.add_lookups(y, ids, parts, *arguments, pairs.coefficients)
        largest = [ReferencePart(part.delta, part.task, part.start, part.column) for part in parts]
        scale = y.float().abs() + len(pairs.rows) * 3 * max(
            float(part.weight.abs().max()) for part in largest
        )
        add_lookups(y, ids, table_of(parts, shape), pairs, kernels=kernels)
        assert_close(y, expected, scale)


@pytest.mark.parametrize("level", LEVELS, ids=lambda level: level.name)
def test_ids_without_a_delta_add_nothing(level: Level) -> None:
    parts = [ReferencePart(KINDS["rows of int4"]((64, 70), 0), 0, 0, 0)]
    rows = parts[0].delta.rows
    assert rows is not None
    absent = sorted(set(range(64)) - set(rows.tolist()))
    y = torch.full((len(absent), 70), -0.0)
    pairs = Batch(len(absent), [len(absent)]).pairs()
    table = table_of(parts, (64, 70))
    add_lookups(y, torch.tensor(absent), table, pairs, kernels=kernels_at(level))
    assert torch.signbit(y).all()
    ids = torch.full((len(absent),), 64)
    ids[0] = -1
    add_lookups(y, ids, table, pairs, kernels=kernels_at(level))
    assert torch.signbit(y).all()


def test_operands_that_do_not_fit_are_refused() -> None:
    kernels_at(Level.AVX2)
    table = table_of(two_parts("int4", (32, 64)), (32, 64))
    pairs = Batch(2, [1, 1], num_columns=2).pairs()
    for out, coefficients in (
        (torch.zeros(31, 64), torch.ones(2)),
        (torch.zeros(32, 65), torch.ones(2)),
        (torch.zeros(32, 64), torch.ones(1)),
        (torch.zeros(32, 64), torch.ones(2).double()),
    ):
        with pytest.raises(OperandError):
            add_weights(out, table, coefficients)
    for y, ids in (
        (torch.zeros(2, 63), torch.zeros(2, dtype=torch.int64)),
        (torch.zeros(2, 64), torch.zeros(3, dtype=torch.int64)),
        (torch.zeros(2, 64), torch.zeros(2, dtype=torch.int32)),
        (torch.zeros(1, 64), torch.zeros(1, dtype=torch.int64)),
    ):
        with pytest.raises(OperandError):
            add_lookups(y, ids, table, pairs)


def test_a_table_without_parts_adds_nothing() -> None:
    kernels_at(Level.AVX2)
    out = torch.ones(3, 5)
    add_weights(out, PartTable.of([], 3, 5), torch.ones(0))
    assert (out == 1).all()
