"""An encoded delta: one tensor of one task vector, as stored."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer.errors import BankFormatError
from taskmix_composer.layout import PACKABLE_BITS, matrix_shape, num_groups, packed_width

ROWS = "rows"
Shape = tuple[int, ...]
Params = Mapping[str, int | float]
PartShapes = dict[str, Shape]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDelta:
    """A delta of a base tensor with shape `shape`, coded by `codec`.

    `rows` (int32, ascending), if present, names the rows of the first axis that changed: `parts`
    then code only those, and every other row of the delta is zero.

    codec     params                parts, for R coded rows of C columns
    dense     -                     values: float32 or bfloat16, like the coded tensor
    affine    bits, group, factor   codes: uint8 [R, packed_width(C, bits)];
                                    scales: float16, zeros: uint8, both [R, groups] ([1, 1] if
                                    group is 0); a weight is (code - zero) * scale * factor
    lowrank   scaling               a: [r, C], b: [R, r]; the matrix is scaling * b @ a
    """

    codec: str
    shape: Shape
    params: Params
    parts: Mapping[str, Tensor]
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        if self.codec not in _PART_SHAPES:
            known = ", ".join(_PART_SHAPES)
            raise BankFormatError(f"codec {self.codec!r} is unknown; this version reads {known}")
        shapes = {part: tuple(tensor.shape) for part, tensor in self.parts.items()}
        expected = _PART_SHAPES[self.codec](self.coded_shape, self.params, shapes)
        if shapes != expected:
            raise BankFormatError(f"{self.codec} parts have shapes {shapes}, not {expected}")
        for part, tensor in self.parts.items():
            if tensor.dtype not in _PART_DTYPES[part]:
                raise BankFormatError(f"part {part} has dtype {tensor.dtype}")
        if self.rows is not None:
            _check_rows(self.rows, self.shape)

    @property
    def coded_shape(self) -> Shape:
        """The shape of the rows that `parts` code."""
        if self.rows is None:
            return self.shape
        return (self.rows.numel(), *self.shape[1:])

    @property
    def num_bytes(self) -> int:
        """Bytes of all stored tensors."""
        stored = [*self.parts.values(), *([] if self.rows is None else [self.rows])]
        return sum(tensor.nbytes for tensor in stored)

    def tensors(self) -> dict[str, Tensor]:
        """Everything stored, rows included, by part name."""
        return dict(self.parts) if self.rows is None else {**self.parts, ROWS: self.rows}


def _dense_shapes(shape: Shape, params: Params, found: PartShapes) -> PartShapes:
    _check_params(params, set())
    return {"values": shape}


def _affine_shapes(shape: Shape, params: Params, found: PartShapes) -> PartShapes:
    _check_params(params, {"bits", "group", "factor"})
    bits, group = params["bits"], params["group"]
    if bits not in PACKABLE_BITS or not isinstance(bits, int):
        raise BankFormatError(f"codes of {bits} bits are unknown")
    if not isinstance(group, int) or group < 0 or len(shape) < 2:
        raise BankFormatError(f"group {group} on shape {shape} is malformed")
    rows, columns = matrix_shape(shape)
    scales = (rows, num_groups(columns, group)) if group else (1, 1)
    return {"codes": (rows, packed_width(columns, bits)), "scales": scales, "zeros": scales}


def _lowrank_shapes(shape: Shape, params: Params, found: PartShapes) -> PartShapes:
    _check_params(params, {"scaling"})
    if len(shape) != 2 or len(found.get("a", ())) != 2:
        raise BankFormatError(f"low-rank factors of a tensor of shape {shape} are malformed")
    rank = found["a"][0]
    return {"a": (rank, shape[1]), "b": (shape[0], rank)}


_PART_SHAPES: Mapping[str, Callable[[Shape, Params, PartShapes], PartShapes]] = {
    "dense": _dense_shapes,
    "affine": _affine_shapes,
    "lowrank": _lowrank_shapes,
}
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_PART_DTYPES: Mapping[str, tuple[torch.dtype, ...]] = {
    "values": (torch.float32, torch.bfloat16),
    "codes": (torch.uint8,),
    "scales": (torch.float16,),
    "zeros": (torch.uint8,),
    "a": _FLOATS,
    "b": _FLOATS,
}


def _check_params(params: Params, names: set[str]) -> None:
    if params.keys() != names:
        raise BankFormatError(f"the codec's parameters are {sorted(names)}, got {sorted(params)}")
    if not all(math.isfinite(value) for value in params.values()):
        raise BankFormatError("the codec's parameters must be finite")


def _check_rows(rows: Tensor, shape: Shape) -> None:
    if rows.dtype != torch.int32 or rows.dim() != 1 or len(shape) < 2:
        raise BankFormatError(f"rows of shape {tuple(rows.shape)} and {rows.dtype} are malformed")
    is_ascending = bool((rows[1:] > rows[:-1]).all())
    is_inside = rows.numel() == 0 or (int(rows[0]) >= 0 and int(rows[-1]) < shape[0])
    if not is_ascending or not is_inside:
        raise BankFormatError(f"rows must ascend within [0, {shape[0]})")
