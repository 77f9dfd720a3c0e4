"""The operations on packed deltas as torch operators, for code that is traced or compiled.

    torch.ops.taskmix.add_products(y, x, handle(table), handle(pairs), is_exact)
    torch.ops.taskmix.add_lookups(y, ids, handle(table), handle(pairs))
    torch.ops.taskmix.add_weights(out, handle(table), coefficients)

They are the functions of `products`. Code that is not traced calls those: the dispatcher takes
longer than checking and calling.
"""

from typing import TypeVar
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from taskmix_composer.kernels import products
from taskmix_composer.kernels.tables import OperandError, Pairs, PartTable

_Object = TypeVar("_Object", PartTable, Pairs)
_objects: WeakValueDictionary[int, PartTable | Pairs] = WeakValueDictionary()


def handle(target: PartTable | Pairs) -> Tensor:
    """What operators take in place of a table or pairs, int64 [1]; it does not keep them alive."""
    _objects[target.address] = target
    return torch.tensor([target.address])


def _found(given: Tensor, kind: type[_Object]) -> _Object:
    target = _objects.get(int(given))
    if not isinstance(target, kind):
        raise OperandError(f"no {kind.__name__} has the handle {int(given)} (any more)")
    return target


def _add_products(y: Tensor, x: Tensor, table: Tensor, pairs: Tensor, is_exact: bool) -> None:
    found = _found(table, PartTable), _found(pairs, Pairs)
    products.add_products(y, x, *found, is_exact=is_exact)


def _add_lookups(y: Tensor, ids: Tensor, table: Tensor, pairs: Tensor) -> None:
    products.add_lookups(y, ids, _found(table, PartTable), _found(pairs, Pairs))


def _add_weights(out: Tensor, table: Tensor, coefficients: Tensor) -> None:
    products.add_weights(out, _found(table, PartTable), coefficients)


def _traced(*_arguments: object) -> None:
    """What tracing sees: the first argument is written to, as the schema says, and nothing new."""


_OPERATORS = {
    "add_products(Tensor(a!) y, Tensor x, Tensor table, Tensor pairs, bool is_exact) -> ()": (
        _add_products
    ),
    "add_lookups(Tensor(a!) y, Tensor ids, Tensor table, Tensor pairs) -> ()": _add_lookups,
    "add_weights(Tensor(a!) out, Tensor table, Tensor coefficients) -> ()": _add_weights,
}
_library = torch.library.Library("taskmix", "FRAGMENT")
for _schema, _implementation in _OPERATORS.items():
    _name = _library.define(_schema)
    _library.impl(_name, _implementation, "CPU")
    _library.impl(_name, _traced, "Meta")
