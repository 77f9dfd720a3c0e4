"""RMS norms whose weight differs from row to row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer.kernels.native import abi, library
from taskmix_composer.kernels.native.library import Kernels
from taskmix_composer.kernels.tables import OperandError


@dataclass(frozen=True, slots=True, eq=False)
class RowWeights:
    """The weight of each row of a batch.

    by_variant: float32 [variants, width]. variant_of_row: int64 [rows], each below `variants`.
    rows: int64, those to compute; None for all.
    """

    by_variant: Tensor
    variant_of_row: Tensor
    rows: Tensor | None = None


def scale_norms(
    out: Tensor,
    x: Tensor,
    weights: RowWeights,
    epsilon: float,
    residual: Tensor | None = None,
    *,
    kernels: Kernels | None = None,
) -> None:
    """out[row] = x[row] / sqrt(mean(x[row]^2) + epsilon) * the row's weight.

    In float32, rounded once. out, x: [rows, width] or [rows, heads, width], each bfloat16, float16
    or float32, with any stride from row to row; `out` may be `x`. residual, of x's shape and
    dtype: first residual[row] += x[row], and what is normalised is that sum before it is rounded.
    No index is checked.
    """
    found = kernels or library.load()
    width, rows, variants = x.shape[-1], weights.rows, weights.variant_of_row
    ids = [variants] if rows is None else [variants, rows]
    fits = (
        out.shape == x.shape
        and variants.shape == x.shape[:1]
        and weights.by_variant.shape[1:] == (width,)
        and weights.by_variant.dtype is torch.float32
        and weights.by_variant.is_contiguous()
        and all(part.dtype is torch.int64 and part.is_contiguous() for part in ids)
        and all(_has_adjacent_heads(part) for part in (out, x))
        and (residual is None or _is_alike(residual, x))
    )
    if not fits or found is None:
        raise OperandError(
            f"out {tuple(out.shape)}, x {tuple(x.shape)} with strides {x.stride()} and weights "
            f"{tuple(weights.by_variant.shape)} do not fit {len(variants)} rows, or the compiled "
            "kernels are missing"
        )
    failed = found.scale_norms(
        *(out.data_ptr(), out.stride(0), abi.DTYPES[out.dtype]),
        *(x.data_ptr(), x.stride(0), abi.DTYPES[x.dtype]),
        *((None, 0) if residual is None else (residual.data_ptr(), residual.stride(0))),
        *(None if rows is None else rows.data_ptr(), len(x) if rows is None else len(rows)),
        *(variants.data_ptr(), weights.by_variant.data_ptr()),
        *(x.shape[1] if x.dim() == 3 else 1, width, epsilon),
    )
    if failed:
        raise MemoryError("a kernel ran out of memory")


def _has_adjacent_heads(x: Tensor) -> bool:
    is_adjacent = x.stride(-1) == 1 and (x.dim() == 2 or x.stride(1) == x.shape[2])
    return is_adjacent and x.dim() in (2, 3) and x.dtype in abi.DTYPES


def _is_alike(residual: Tensor, x: Tensor) -> bool:
    return residual.shape == x.shape and residual.dtype is x.dtype and _has_adjacent_heads(residual)
