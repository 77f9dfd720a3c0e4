"""The device operations: each checks its operands, then calls the one implementation selected.

Each is one opaque operator of torch, `taskmix_device::NAME`, which changes its first argument: a
compiler sees a call and nothing inside, a captured graph replays it with what the tensors of
`Routes` and `Blends` then hold.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache

import torch
from torch import Tensor

from taskmix_composer.kernels.device import looped, operands
from taskmix_composer.kernels.device.blends import Blends
from taskmix_composer.kernels.device.factors import FactorSlots
from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.tables import OperandError


class KernelUnavailableError(RuntimeError):
    """An implementation that was asked for and cannot run here."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """One function for each operation, with the operands of the methods of `Ops`."""

    add_products: Callable[[Tensor, Tensor, DeltaSlots, Routes], None]
    add_lowrank: Callable[[Tensor, Tensor, FactorSlots, Routes], None]
    add_composed: Callable[[Tensor, Tensor, DeltaSlots, Blends], None]
    add_weights: Callable[[Tensor, Tensor, DeltaSlots, Blends], None]
    add_lookups: Callable[[Tensor, Tensor, DeltaSlots, Routes], None]


@dataclass(frozen=True, slots=True)
class Ops:
    """The operations under one implementation; see `select`."""

    name: str

    def add_products(self, y: Tensor, x: Tensor, slots: DeltaSlots, routes: Routes) -> None:
        """y [M, rows] += sum over a row's tasks of coefficient * (x[row] @ delta.T), rounded once.

        x: bfloat16 or float16 [M, columns]; products are summed in float32.
        """
        operands.check_products(y, x, slots)
        operands.check_rows(y, routes)
        _add_products(y, x, *_flat(slots), _tensors(routes), self.name)

    def add_lowrank(self, y: Tensor, x: Tensor, slots: FactorSlots, routes: Routes) -> None:
        """What `add_products` does, for low-rank deltas in x's dtype."""
        operands.check_products(y, x, slots)
        operands.check_factors(x, slots)
        operands.check_rows(y, routes)
        _add_lowrank(y, x, _tensors(slots), _tensors(routes), self.name)

    def add_composed(self, y: Tensor, x: Tensor, slots: DeltaSlots, blends: Blends) -> None:
        """y[rows] += x[rows] @ mix.T for each group of rows with one mix.

        The mix's weights are rounded to x's dtype before they are multiplied.
        """
        operands.check_products(y, x, slots)
        _add_composed(y, x, *_flat(slots), _tensors(blends), self.name)

    def add_weights(self, out: Tensor, base: Tensor, slots: DeltaSlots, blends: Blends) -> None:
        """out [rows, columns] = base + the first group's mix, rounded once."""
        operands.check_weights(out, base, slots)
        _add_weights(out, base, *_flat(slots), _tensors(blends), self.name)

    def merge_weights(self, weights: Tensor, slots: DeltaSlots, blends: Blends) -> None:
        """weights += the first group's mix, in place and rounded once."""
        operands.check_weights(weights, weights, slots)
        _merge_weights(weights, *_flat(slots), _tensors(blends), self.name)

    def add_lookups(self, y: Tensor, ids: Tensor, slots: DeltaSlots, routes: Routes) -> None:
        """y [M, columns] += sum over a row's tasks of coefficient * delta[ids[row]], rounded once.

        ids: int64 [M], each below the deltas' number of rows.
        """
        operands.check_lookups(y, ids, slots)
        operands.check_rows(y, routes)
        _add_lookups(y, ids, *_flat(slots), _tensors(routes), self.name)


def select(name: str) -> Ops:
    """The operations as `reference`, loops for any device, or as `triton`."""
    implementation(name)
    return Ops(name)


@cache
def implementation(name: str) -> Implementation:
    """The functions of that name."""
    if name not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise OperandError(f"kernels {name!r} are unknown; select one of {known}")
    return IMPLEMENTATIONS[name]()


def check_device(name: str, device: torch.device) -> None:
    """Raise KernelUnavailableError unless an implementation runs on a device."""
    implementation(name)
    if name != "triton" or device.type == "cuda":
        return
    from taskmix_composer.kernels.triton.tuning import is_interpreted

    if not is_interpreted():
        raise KernelUnavailableError(
            "these kernels need a CUDA device; on CPU they can be tried, slowly, with "
            "TRITON_INTERPRET=1 in the environment"
        )


def _reference() -> Implementation:
    return Implementation(
        looped.add_products,
        looped.add_lowrank,
        looped.add_composed,
        looped.add_weights,
        looped.add_lookups,
    )


def _triton() -> Implementation:
    try:
        from taskmix_composer.kernels.triton import (
            composed,
            lookups,
            lowrank,
            masked,
            products,
            weights,
        )
    except ModuleNotFoundError as error:
        raise KernelUnavailableError("these kernels need triton; install it") from error

    def add_products(y: Tensor, x: Tensor, slots: DeltaSlots, routes: Routes) -> None:
        add = products.add_products if slots.shared is None else masked.add_masked_products
        add(y, x, slots, routes)

    return Implementation(
        add_products,
        lowrank.add_lowrank,
        composed.add_composed,
        weights.add_weights,
        lookups.add_lookups,
    )


IMPLEMENTATIONS: Mapping[str, Callable[[], Implementation]] = {
    "reference": _reference,
    "triton": _triton,
}

# An operator takes tensors and numbers; slots, routes and blends travel as lists of them.
_NUMBERS = ("rows", "columns", "bits", "group")


def _tensors(record: DeltaSlots | FactorSlots | Routes | Blends) -> list[Tensor]:
    """The tensors of a record, by field."""
    values = [getattr(record, field.name) for field in fields(record)]
    return [value for value in values if isinstance(value, Tensor)]


def _flat(slots: DeltaSlots) -> tuple[list[Tensor], list[int]]:
    """Slots as tensors and numbers, the shared vector's after their own."""
    shared = slots.shared
    tensors, numbers = _tensors(slots), [getattr(slots, name) for name in _NUMBERS]
    if shared is None:
        return tensors, numbers
    return [*tensors, *_tensors(shared)], [*numbers, *(getattr(shared, n) for n in _NUMBERS)]


def _slots(tensors: list[Tensor], numbers: list[int]) -> DeltaSlots:
    """Invert `_flat`."""
    count = len(_NUMBERS)
    half = len(tensors) * count // len(numbers)
    shared = _slots(tensors[half:], numbers[count:]) if len(numbers) > count else None
    rows, columns, bits, group = numbers[:count]
    words, metas, row_scales, is_loaded, segments = tensors[:half]
    return DeltaSlots(
        rows, columns, bits, group, words, metas, row_scales, is_loaded, segments, shared
    )


def _factors(tensors: list[Tensor]) -> FactorSlots:
    a, b = tensors[:2]
    return FactorSlots(b.shape[1], a.shape[2], *tensors)


@torch.library.custom_op("taskmix_device::add_products", mutates_args=("y",))
def _add_products(
    y: Tensor, x: Tensor, slots: list[Tensor], numbers: list[int], routes: list[Tensor], name: str
) -> None:
    implementation(name).add_products(y, x, _slots(slots, numbers), Routes(*routes))


@torch.library.custom_op("taskmix_device::add_lowrank", mutates_args=("y",))
def _add_lowrank(
    y: Tensor, x: Tensor, slots: list[Tensor], routes: list[Tensor], name: str
) -> None:
    implementation(name).add_lowrank(y, x, _factors(slots), Routes(*routes))


@torch.library.custom_op("taskmix_device::add_composed", mutates_args=("y",))
def _add_composed(
    y: Tensor, x: Tensor, slots: list[Tensor], numbers: list[int], blends: list[Tensor], name: str
) -> None:
    implementation(name).add_composed(y, x, _slots(slots, numbers), Blends(*blends))


@torch.library.custom_op("taskmix_device::add_weights", mutates_args=("out",))
def _add_weights(
    out: Tensor,
    base: Tensor,
    slots: list[Tensor],
    numbers: list[int],
    blends: list[Tensor],
    name: str,
) -> None:
    implementation(name).add_weights(out, base, _slots(slots, numbers), Blends(*blends))


@torch.library.custom_op("taskmix_device::merge_weights", mutates_args=("weights",))
def _merge_weights(
    weights: Tensor, slots: list[Tensor], numbers: list[int], blends: list[Tensor], name: str
) -> None:
    implementation(name).add_weights(weights, weights, _slots(slots, numbers), Blends(*blends))


@torch.library.custom_op("taskmix_device::add_lookups", mutates_args=("y",))
def _add_lookups(
    y: Tensor, ids: Tensor, slots: list[Tensor], numbers: list[int], routes: list[Tensor], name: str
) -> None:
    implementation(name).add_lookups(y, ids, _slots(slots, numbers), Routes(*routes))


def _nothing(*operands: object) -> None:
    """What an operator returns, without running it: it only changes its first operand."""


OPERATORS = {
    "add_products": _add_products,
    "add_lowrank": _add_lowrank,
    "add_composed": _add_composed,
    "add_weights": _add_weights,
    "merge_weights": _merge_weights,
    "add_lookups": _add_lookups,
}
for _operator in OPERATORS.values():
    _operator.register_fake(_nothing)
