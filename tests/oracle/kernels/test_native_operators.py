"""The torch operators over the kernels."""

import gc

import pytest
import torch

from taskmix_composer.kernels import operators
from taskmix_composer.kernels.native.library import Level
from taskmix_composer.kernels.products import (
    OperandError,
    add_lookups,
    add_products,
    add_weights,
)
from taskmix_composer.kernels.reference import ReferencePart
from tests.oracle.kernels.native_cases import KINDS, Batch, kernels_at, table_of

SHAPE = (64, 70)


@pytest.fixture
def table():
    kernels_at(Level.AVX2)
    parts = [ReferencePart(KINDS["int4"](SHAPE, task), task, 0, 0) for task in range(2)]
    return table_of(parts, SHAPE)


@pytest.fixture
def pairs():
    return Batch(4, [4, 2]).pairs()


def test_operators_do_what_the_functions_do(table, pairs) -> None:
    handles = operators.handle(table), operators.handle(pairs)
    x, ids = torch.randn(4, 70).bfloat16(), torch.arange(4)
    found, wanted = torch.zeros(4, 64), torch.zeros(4, 64)
    torch.ops.taskmix.add_products(found, x, *handles, False)
    add_products(wanted, x, table, pairs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    found, wanted = torch.zeros(4, 70), torch.zeros(4, 70)
    torch.ops.taskmix.add_lookups(found, ids, *handles)
    add_lookups(wanted, ids, table, pairs)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    found, wanted = torch.zeros(64, 70), torch.zeros(64, 70)
    torch.ops.taskmix.add_weights(found, handles[0], torch.ones(1))
    add_weights(wanted, table, torch.ones(1))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_operators_are_well_formed(table, pairs) -> None:
    handles = operators.handle(table), operators.handle(pairs)
    x, ids = torch.randn(4, 70).bfloat16(), torch.arange(4)
    for operator, arguments in (
        (torch.ops.taskmix.add_products, (torch.zeros(4, 64), x, *handles, True)),
        (torch.ops.taskmix.add_lookups, (torch.zeros(4, 70), ids, *handles)),
        (torch.ops.taskmix.add_weights, (torch.zeros(64, 70), handles[0], torch.ones(1))),
    ):
        torch.library.opcheck(operator.default, arguments)


def test_a_handle_does_not_outlive_its_object(pairs) -> None:
    kernels_at(Level.AVX2)
    gone = operators.handle(table_of([ReferencePart(KINDS["int4"](SHAPE, 0), 0, 0, 0)], SHAPE))
    gc.collect()
    x, y = torch.zeros(4, 70), torch.zeros(4, 64)
    with pytest.raises(OperandError, match="no PartTable has the handle"):
        torch.ops.taskmix.add_products(y, x, gone, operators.handle(pairs), False)
