from dataclasses import replace

import pytest
import torch

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.errors import BankFormatError
from taskmix_composer.quant import encode, lowrank

MATRIX = torch.linspace(-1, 1, 24).view(4, 6)
AFFINE = encode(MATRIX, Scheme.of("int4", group=4))
DENSE = encode(MATRIX, Scheme("dense"))
LOWRANK = lowrank.encode(torch.ones(2, 6), torch.ones(4, 2), 0.5)


def test_sizes_and_tensors() -> None:
    sparse = torch.zeros(4, 6)
    sparse[2] = 1.0
    encoded = encode(sparse, Scheme("dense"))
    assert encoded.coded_shape == (1, 6)
    assert encoded.num_bytes == 24 + 4
    assert encoded.tensors().keys() == {"values", "rows"}
    assert DENSE.tensors().keys() == {"values"}
    assert AFFINE.num_bytes == 4 * (4 + 2 * 2 + 2)


@pytest.mark.parametrize(
    ("encoded", "change"),
    [
        (DENSE, {"codec": "sparse"}),
        (DENSE, {"shape": (4, 5)}),
        (DENSE, {"parts": {"values": MATRIX.half()}}),
        (DENSE, {"parts": {}}),
        (DENSE, {"params": {"bits": 4}}),
        (AFFINE, {"params": {"bits": 4, "group": 4}}),
        (AFFINE, {"params": {**AFFINE.params, "bits": 5}}),
        (AFFINE, {"params": {**AFFINE.params, "bits": 4.0}}),
        (AFFINE, {"params": {**AFFINE.params, "group": -1}}),
        (AFFINE, {"params": {**AFFINE.params, "group": 2.0}}),
        (AFFINE, {"params": {**AFFINE.params, "group": 0}}),
        (AFFINE, {"params": {**AFFINE.params, "factor": float("inf")}}),
        (AFFINE, {"shape": (24,)}),
        (AFFINE, {"parts": {**AFFINE.parts, "zeros": AFFINE.parts["scales"]}}),
        (LOWRANK, {"shape": (4, 6, 1)}),
        (LOWRANK, {"parts": {"b": torch.ones(4, 2)}}),
        (LOWRANK, {"parts": {"a": torch.ones(3, 6), "b": torch.ones(4, 2)}}),
        (LOWRANK, {"params": {}}),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    encoded: EncodedDelta, change: dict[str, object]
) -> None:
    with pytest.raises(BankFormatError):
        replace(encoded, **change)


@pytest.mark.parametrize(
    "rows",
    [
        torch.tensor([0, 1], dtype=torch.int64),
        torch.tensor([[0, 1]], dtype=torch.int32),
        torch.tensor([1, 1], dtype=torch.int32),
        torch.tensor([-1, 1], dtype=torch.int32),
        torch.tensor([1, 4], dtype=torch.int32),
    ],
)
def test_rows_are_checked(rows: torch.Tensor) -> None:
    with pytest.raises(BankFormatError, match="rows"):
        EncodedDelta("dense", (4, 6), {}, {"values": torch.ones(rows.numel(), 6)}, rows)


def test_rows_may_be_none_of_them_or_the_last() -> None:
    none = torch.zeros(0, dtype=torch.int32)
    assert EncodedDelta("dense", (4, 6), {}, {"values": torch.ones(0, 6)}, none).num_bytes == 0
    last = torch.tensor([0, 3], dtype=torch.int32)
    assert EncodedDelta("dense", (4, 6), {}, {"values": torch.ones(2, 6)}, last).num_bytes == 56
    with pytest.raises(BankFormatError, match="rows"):
        EncodedDelta("dense", (2,), {}, {"values": torch.ones(2)}, last)
