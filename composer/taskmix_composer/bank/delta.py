"""An encoded delta: one tensor of one task vector, as stored."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer.bank.codecs import Params, Shape, check_parts
from taskmix_composer.errors import BankFormatError

ROWS = "rows"


@dataclass(frozen=True, slots=True, eq=False)
class EncodedDelta:
    """A delta of a base tensor with shape `shape`, coded by `codec`.

    `rows` (int32, ascending), if present, names the rows of the first axis that changed: `parts`
    then code only those, and every other row of the delta is zero.

    `shared`, if present, is the delta that this one is coded over: under `masked` the part of it
    that a mask keeps, under any other codec what is added to it. Its rows are then this delta's.

    codec     params                parts, for R coded rows of C columns
    dense     -                     values: float32 or bfloat16, like the coded tensor
    affine    bits, group, factor   codes: uint8 [R, packed_width(C, bits)];
                                    scales: float16, zeros: uint8, both [R, groups] ([1, 1] if
                                    group is 0); a weight is (code - zero) * scale * factor
    lowrank   scaling               a: [r, C], b: [R, r]; the matrix is scaling * b @ a
    sign      factor                signs: uint8 [R, packed_width(C, 1)], 1 where positive;
                                    scales: float16 [R, 1]; a weight is +-scale * factor, and in
                                    S salient rows +-(high or scale) * factor. These add salient:
                                    int32 [S], ascending; highs: float16 [S, 1]; sizes: uint8
                                    [S, packed_width(C, 1)], 1 where a weight is high
    sparse    bits, kept, factor    mask: uint8 [R, packed_width(C, 1)], 1 where a weight is kept;
                                    codes: uint8 [R, packed_width(kept, bits)], of a row's kept
                                    weights in order, at most `kept`: the lowest bit is 1 where
                                    positive, the others are a level; scales: float16 [R, 1]; a
                                    weight is +-(1 + level) * scale * factor
    masked    scale                 mask: uint8 [R, packed_width(C, 1)]; a weight is
                                    scale * mask * shared
    plane     -                     mask: uint8 [R, packed_width(C, 1)]; a weight is 0 or 1
    exact     -                     escapes, levels, steps: uint8 [n] each, from which
                                    `quant.exact` restores the fine-tuned tensor
    raw       -                     tuned: the fine-tuned tensor
    """

    codec: str
    shape: Shape
    params: Params
    parts: Mapping[str, Tensor]
    rows: Tensor | None = None
    shared: "EncodedDelta | None" = None

    def __post_init__(self) -> None:
        if self.shared is not None:
            self._take_rows(self.shared)
        elif self.codec == "masked":
            raise BankFormatError("a masked delta needs the vector it masks")
        check_parts(self.codec, self.coded_shape, self.params, self.parts)
        if self.rows is not None:
            _check_rows(self.rows, self.shape)
        if "salient" in self.parts:
            _check_rows(self.parts["salient"], self.coded_shape)

    def _take_rows(self, shared: "EncodedDelta") -> None:
        if self.rows is not None or shared.shape != self.shape or shared.shared is not None:
            raise BankFormatError("the delta does not fit the shared one it is coded over")
        object.__setattr__(self, "rows", shared.rows)

    @property
    def coded_shape(self) -> Shape:
        """The shape of the rows that `parts` code."""
        if self.rows is None:
            return self.shape
        return (self.rows.numel(), *self.shape[1:])

    @property
    def num_bytes(self) -> int:
        """Bytes of its own tensors in memory; a shared delta counts for itself."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Its own tensors by part name, rows included unless they are the shared delta's."""
        if self.rows is None or self.shared is not None:
            return dict(self.parts)
        return {**self.parts, ROWS: self.rows}


def _check_rows(rows: Tensor, shape: Shape) -> None:
    if rows.dtype != torch.int32 or rows.dim() != 1 or len(shape) < 2:
        raise BankFormatError(f"rows of shape {tuple(rows.shape)} and {rows.dtype} are malformed")
    is_ascending = bool((rows[1:] > rows[:-1]).all())
    is_inside = rows.numel() == 0 or (int(rows[0]) >= 0 and int(rows[-1]) < shape[0])
    if not is_ascending or not is_inside:
        raise BankFormatError(f"rows must ascend within [0, {shape[0]})")
