"""RMS norms with a weight for each row's variant, against a loop in float64."""

import pytest
import torch
from torch import Tensor

from taskmix_composer.kernels.native.library import Level
from taskmix_composer.kernels.norms import RowWeights, scale_norms
from taskmix_composer.kernels.tables import OperandError
from tests.oracle.kernels.native_cases import HALF_ULP, SMALLEST, kernels_at

EPSILON = 1e-5
# float32 sums of up to 4,096 squares, and a few roundings more.
FLOAT32_ERROR = 1e-5


def looped(x: Tensor, weights: Tensor, variant_of_row: Tensor) -> Tensor:
    """float64, like x [rows, heads, width]."""
    out = torch.empty_like(x, dtype=torch.float64)
    for row, variant in enumerate(variant_of_row.tolist()):
        for head in range(x.shape[1]):
            values = x[row, head].double()
            mean = sum(float(value) ** 2 for value in values) / len(values)
            out[row, head] = values / (mean + EPSILON) ** 0.5 * weights[variant].double()
    return out


@pytest.mark.parametrize("level", list(Level), ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", list(HALF_ULP), ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 576), (5, 4, 33), (200, 2, 512)], ids=str)
@pytest.mark.parametrize("chosen", ["all", "some", "none"])
def test_norms_equal_a_loop(
    level: Level, dtype: torch.dtype, shape: tuple[int, int, int], chosen: str
) -> None:
    generator = torch.Generator().manual_seed(2)
    num_rows, heads, width = shape
    wide = torch.randn(num_rows, heads * width + 3, generator=generator).to(dtype)
    x = wide[:, : heads * width].unflatten(1, (heads, width))
    weights = torch.randn(3, width, generator=generator)
    variant_of_row = torch.randint(0, 3, (num_rows,), generator=generator)
    rows = {
        "all": None,
        "some": torch.arange(0, num_rows, 2),
        "none": torch.empty(0, dtype=torch.int64),
    }[chosen]
    before = torch.randn(shape, generator=generator).to(dtype)
    out = before.clone()
    chosen_weights = RowWeights(weights, variant_of_row, rows)
    scale_norms(out, x, chosen_weights, EPSILON, kernels=kernels_at(level))
    expected = looped(x, weights, variant_of_row)
    kept = torch.ones(num_rows, dtype=torch.bool)
    kept[slice(None) if rows is None else rows] = False
    assert torch.equal(out[kept], before[kept]), "other rows were written to"
    error = (out[~kept].double() - expected[~kept]).abs()
    limit = (HALF_ULP[dtype] + FLOAT32_ERROR) * expected[~kept].abs() + SMALLEST[dtype]
    assert (error <= limit).all()


@pytest.mark.parametrize("level", list(Level), ids=lambda level: level.name)
@pytest.mark.parametrize("dtype", list(HALF_ULP), ids=str)
@pytest.mark.parametrize("is_in_place", [False, True])
def test_a_residual_is_added_first_and_gets_the_rounded_sum(
    level: Level, dtype: torch.dtype, is_in_place: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(9, 2, 33, generator=generator).to(dtype)
    residual = torch.randn(9, 2, 33, generator=generator).to(dtype)
    weights, variants = torch.randn(3, 33, generator=generator), torch.arange(9) % 3
    rows = torch.tensor([0, 2, 3, 8])
    summed = x.float() + residual.float()
    wanted_residual = residual.clone()
    wanted_residual[rows] = summed[rows].to(dtype)
    expected = looped(summed, weights, variants)[rows]
    out = x if is_in_place else torch.zeros_like(x)
    chosen = RowWeights(weights, variants, rows)
    scale_norms(out, x, chosen, EPSILON, residual, kernels=kernels_at(level))
    assert torch.equal(residual, wanted_residual)
    limit = (HALF_ULP[dtype] + FLOAT32_ERROR) * expected.abs() + SMALLEST[dtype]
    assert ((out[rows].double() - expected).abs() <= limit).all()


def test_matrices_without_heads_are_taken_too() -> None:
    x, weights = torch.randn(4, 8), torch.randn(2, 8)
    variants = torch.tensor([0, 1, 1, 0])
    flat, headed = torch.empty(4, 8), torch.empty(4, 1, 8)
    scale_norms(flat, x, RowWeights(weights, variants), EPSILON)
    scale_norms(headed, x[:, None], RowWeights(weights, variants), EPSILON)
    assert torch.equal(flat, headed[:, 0])


@pytest.mark.parametrize(
    "change",
    [
        {"out": torch.zeros(4, 9)},
        {"by_variant": torch.zeros(2, 9)},
        {"by_variant": torch.zeros(2, 8, dtype=torch.float64)},
        {"variant_of_row": torch.zeros(3, dtype=torch.int64)},
        {"variant_of_row": torch.zeros(4, dtype=torch.int32)},
        {"rows": torch.zeros(4, dtype=torch.int32)},
        {"x": torch.zeros(8, 4).T},
        {"x": torch.zeros(4, 8, dtype=torch.float64)},
        {"residual": torch.zeros(4, 9)},
        {"residual": torch.zeros(4, 8, dtype=torch.bfloat16)},
        {"residual": torch.zeros(8, 4).T},
    ],
    ids=str,
)
def test_operands_that_do_not_fit_are_refused(change: dict[str, Tensor]) -> None:
    given = {
        "out": torch.zeros(4, 8),
        "x": torch.zeros(4, 8),
        "by_variant": torch.zeros(2, 8),
        "variant_of_row": torch.zeros(4, dtype=torch.int64),
        "rows": None,
        "residual": None,
        **change,
    }
    out, x, residual = given.pop("out"), given.pop("x"), given.pop("residual")
    assert out is not None
    assert x is not None
    with pytest.raises(OperandError, match="do not fit"):
        scale_norms(out, x, RowWeights(**given), EPSILON, residual)  # type: ignore[arg-type]
