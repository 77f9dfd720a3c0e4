"""What the device operations refuse, said once for all implementations."""

import torch
from torch import Tensor

from taskmix_composer.kernels.device.factors import FactorSlots
from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.tables import OperandError

DTYPES = (torch.bfloat16, torch.float16)


def check_matrix(name: str, matrix: Tensor, shape: tuple[int, int]) -> None:
    """Refuse what is no matrix of this shape with rows of consecutive 16-bit floats."""
    if tuple(matrix.shape) != shape:
        raise OperandError(f"{name} has shape {tuple(matrix.shape)}; give it {shape}")
    if matrix.dtype not in DTYPES:
        raise OperandError(f"{name} is {matrix.dtype}; give bfloat16 or float16")
    if matrix.stride(1) != 1:
        raise OperandError(f"the rows of {name} are not consecutive; make it contiguous")


def check_products(y: Tensor, x: Tensor, slots: DeltaSlots | FactorSlots) -> None:
    """Refuse an x or y that does not fit the deltas."""
    if x.dim() != 2:
        raise OperandError(f"x has {x.dim()} axes; give rows by inputs")
    check_matrix("x", x, (len(x), slots.columns))
    check_matrix("y", y, (len(x), slots.rows))
    if y.dtype != x.dtype:
        raise OperandError(f"y is {y.dtype} and x {x.dtype}; give one dtype")
    check_devices(slots.row_scales, x=x, y=y)


def check_factors(x: Tensor, slots: FactorSlots) -> None:
    """Refuse factors in another dtype than the activations."""
    if slots.a.dtype != x.dtype:
        raise OperandError(f"the factors are {slots.a.dtype} and x {x.dtype}; give one dtype")


def check_rows(y: Tensor, routes: Routes) -> None:
    """Refuse a batch that the routes do not cover."""
    if len(y) > routes.max_rows:
        raise OperandError(
            f"{len(y)} rows pass the routes' {routes.max_rows}; allocate larger routes"
        )


def check_lookups(y: Tensor, ids: Tensor, slots: DeltaSlots) -> None:
    """Refuse ids or outputs that do not fit an embedding."""
    if y.dim() != 2:
        raise OperandError(f"y has {y.dim()} axes; give rows by columns")
    check_matrix("y", y, (len(y), slots.columns))
    if ids.dtype != torch.int64 or ids.shape != (len(y),):
        raise OperandError(f"give ids as int64 [{len(y)}], not {ids.dtype} {tuple(ids.shape)}")
    check_devices(slots.row_scales, y=y, ids=ids)


def check_weights(out: Tensor, base: Tensor, slots: DeltaSlots) -> None:
    """Refuse weights of another shape than the deltas."""
    check_matrix("out", out, (slots.rows, slots.columns))
    check_matrix("base", base, (slots.rows, slots.columns))
    if out.dtype != base.dtype:
        raise OperandError(f"out is {out.dtype} and base {base.dtype}; give one dtype")
    check_devices(slots.row_scales, out=out, base=base)


def check_devices(reference: Tensor, **tensors: Tensor) -> None:
    """Refuse tensors on another device than the deltas."""
    for name, tensor in tensors.items():
        if tensor.device != reference.device:
            raise OperandError(f"{name} is on {tensor.device}; move it to {reference.device}")
