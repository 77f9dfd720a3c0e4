"""The operations' own behaviour, with the reference implementation."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from taskmix_composer.kernels import ops
from taskmix_composer.kernels.device.blends import Blends
from taskmix_composer.kernels.device.factors import FactorSlots
from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.tables import OperandError
from tests.oracle.kernels.triton.cases import (
    BATCHES,
    Coding,
    random_factors,
    random_rows,
    random_slots,
)

CPU = torch.device("cpu")
BATCH = BATCHES["some-rows"]
SHAPE = (70, 290)
REFERENCE = ops.select("reference")


def slots() -> DeltaSlots:
    return random_slots(Coding(4, 64), SHAPE, CPU)


def factors() -> FactorSlots:
    return random_factors(4, SHAPE, torch.bfloat16, CPU)


def rows(width: int) -> Tensor:
    return random_rows(BATCH.num_rows, width, torch.bfloat16, CPU)


def blends() -> Blends:
    found = Blends.allocate(6, 2, 4, 2, CPU)
    found.fill([[0, 2], [5]], [[0, 1], [2]], torch.rand(2, 3))
    return found


def ids() -> Tensor:
    return torch.arange(BATCH.num_rows)


def test_products_are_those_of_the_dense_deltas() -> None:
    routes, deltas = BATCH.routes(CPU), slots()
    x, y = rows(SHAPE[1]), rows(SHAPE[0])
    expected = y.float()
    pair = 0
    for slot, wanted in BATCH.tasks:
        for row in wanted:
            coefficients = routes.coefficients[deltas.segments.long(), pair]
            expected[row] += coefficients * (deltas.dense(slot) @ x[row].float())
            pair += 1
    REFERENCE.add_products(y, x, deltas, routes)
    torch.testing.assert_close(y.float(), expected, rtol=2.0**-8, atol=1e-5)


def test_composed_products_are_those_of_the_written_weights() -> None:
    deltas, groups = slots(), blends()
    x, y = rows(SHAPE[1]), torch.zeros(BATCH.num_rows, SHAPE[0], dtype=torch.bfloat16)
    weights = torch.zeros(SHAPE, dtype=torch.bfloat16)
    REFERENCE.merge_weights(weights, deltas, groups)
    REFERENCE.add_composed(y, x, deltas, groups)
    expected = x[[0, 2]].float() @ weights.float().T
    torch.testing.assert_close(y[[0, 2]].float(), expected, rtol=2.0**-8, atol=2.0**-6)
    assert not y[[1, 3, 4]].any()


def test_lookups_are_rows_of_the_written_weights() -> None:
    deltas, routes = slots(), Routes.allocate(6, 1, 6, 2, CPU)
    starts = torch.tensor([0, 6], dtype=torch.int32)
    routes.fill([2], starts, torch.arange(6, dtype=torch.int32), torch.full((2, 6), 0.5))
    y = torch.zeros(6, SHAPE[1], dtype=torch.bfloat16)
    REFERENCE.add_lookups(y, ids() * 7, deltas, routes)
    assert torch.equal(y, (deltas.dense(2)[::7][:6] * 0.5).to(torch.bfloat16))


@pytest.mark.parametrize("name", ops.OPERATORS)
@pytest.mark.parametrize("coding", [Coding(4, 64), Coding(0, 64)], ids=str)
def test_operators_hold_what_torch_asks_of_them(name: str, coding: Coding) -> None:
    deltas = random_slots(coding, SHAPE, CPU)
    packed, routes, groups = ops._flat(deltas), ops._tensors(BATCH.routes(CPU)), blends()
    routes[-1] = routes[-1].nan_to_num()
    x, y, base = rows(SHAPE[1]), rows(SHAPE[0]), torch.zeros(SHAPE, dtype=torch.bfloat16)
    operands = {
        "add_products": (y, x, *packed, routes),
        "add_lowrank": (y, x, ops._tensors(factors()), routes),
        "add_composed": (y, x, *packed, ops._tensors(groups)),
        "add_weights": (base, base + 1, *packed, ops._tensors(groups)),
        "merge_weights": (base, *packed, ops._tensors(groups)),
        "add_lookups": (x, ids(), *packed, routes),
    }[name]
    torch.library.opcheck(ops.OPERATORS[name], (*operands, "reference"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: REFERENCE.add_products(rows(70), rows(300), slots(), r), r"x has shape .* 290"),
        (lambda r: REFERENCE.add_products(rows(71), rows(290), slots(), r), r"y has shape .* 70"),
        (lambda r: REFERENCE.add_products(rows(70).float(), rows(290), slots(), r), "float32"),
        (lambda r: REFERENCE.add_products(rows(70).half(), rows(290), slots(), r), "one dtype"),
        (
            lambda r: REFERENCE.add_products(rows(70), rows(580)[:, ::2], slots(), r),
            "not consecutive",
        ),
        (
            lambda r: REFERENCE.add_products(
                rows(70).repeat(2, 1), rows(290).repeat(2, 1), slots(), r
            ),
            "larger routes",
        ),
        (
            lambda r: REFERENCE.add_lowrank(rows(70).half(), rows(290).half(), factors(), r),
            "factors",
        ),
        (lambda r: REFERENCE.add_lookups(rows(290), ids().int(), slots(), r), "int64"),
        (lambda r: REFERENCE.merge_weights(rows(290), slots(), blends()), "out has shape"),
    ],
)
def test_operands_that_do_not_fit_are_refused(call: Callable[[Routes], None], message: str) -> None:
    with pytest.raises(OperandError, match=message):
        call(BATCH.routes(CPU))


def test_routes_past_their_capacity_are_refused() -> None:
    routes = Routes.allocate(4, 1, 2, 1, CPU)
    starts, wanted = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)
    with pytest.raises(OperandError, match="larger routes"):
        routes.fill([0, 1], starts, wanted, torch.ones(1, 1))
    with pytest.raises(OperandError, match="rows must lie"):
        routes.fill([0], starts, wanted + 4, torch.ones(1, 1))
    with pytest.raises(OperandError, match="1 columns"):
        routes.fill([0], starts, wanted, torch.ones(2, 1))
    with pytest.raises(OperandError, match="starts"):
        routes.fill([0], starts[:1], wanted, torch.ones(1, 1))


def test_blends_past_their_capacity_are_refused() -> None:
    groups = Blends.allocate(2, 1, 1, 1, CPU)
    with pytest.raises(OperandError, match="larger blends"):
        groups.fill([[0]], [[0, 1]], torch.ones(1, 2))
    with pytest.raises(OperandError, match="one group"):
        groups.fill([[0, 0]], [[0]], torch.ones(1, 1))


def test_an_unknown_implementation_is_refused() -> None:
    with pytest.raises(OperandError, match="reference, triton"):
        ops.select("cuda")
