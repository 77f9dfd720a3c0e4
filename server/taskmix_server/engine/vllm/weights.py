"""What a coded delta computes: a product with inputs, or a look-up of vocabulary rows.

Results are float32; products are made in the inputs' dtype.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.quant import decode, decode_rows
from taskmix_server.engine.vllm.cache import DeltaCache

Cuts = tuple[tuple[EncodedDelta, bool], ...]
"""The planes that cut a delta: with True, what a plane keeps is taken away."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Outputs [start, start + size) of a site, scaled by one column of the coefficient table."""

    start: int
    size: int
    column: int


@dataclass(frozen=True, slots=True, eq=False)
class MaskedDelta:
    """A coded delta, and the planes that cut it."""

    coded: EncodedDelta
    cuts: Cuts = ()

    def values(self) -> Tensor:
        """The changed rows (all of them where `coded.rows` is None) in float32."""
        rows, values = decode_rows(self.coded)
        for plane, is_complement in self.cuts:
            kept = decode(plane).bool()
            kept = kept if rows is None else kept[rows.long()]
            values = values.masked_fill(kept if is_complement else ~kept, 0.0)
        return values

    def whole(self) -> Tensor:
        """The delta of every row, float32."""
        if self.coded.rows is None:
            return self.values()
        delta = torch.zeros(self.coded.shape, dtype=torch.float32)
        delta[self.coded.rows.long()] = self.values()
        return delta


@dataclass(frozen=True, slots=True, eq=False)
class StackedWeight:
    """Coded matrices of one module, multiplied as one dense matrix that a cache may hold.

    deltas: one per segment, stacked in this order. Of a single one only the changed rows are
        dense. dtype and device are the dense form's.
    rows: int64 ids of these rows, or None for all of them.
    plain: the dense form, where the coded one is that already.
    """

    deltas: tuple[MaskedDelta, ...]
    segments: tuple[Segment, ...]
    dtype: torch.dtype
    device: torch.device
    cache: DeltaCache
    rows: Tensor | None = field(init=False, default=None)
    plain: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if len(self.deltas) > 1:
            return
        coded = self.deltas[0].coded
        if coded.rows is not None:
            object.__setattr__(self, "rows", coded.rows.to(self.device, torch.int64))
        values = coded.parts.get("values")
        is_plain = coded.shared is None and not self.deltas[0].cuts
        if values is not None and is_plain and values.dtype == self.dtype:
            object.__setattr__(self, "plain", values.to(self.device))

    def product(self, x: Tensor) -> Tensor:
        """x [rows, inputs] @ weight.T, float32 [rows, sum of segment sizes]."""
        product = functional.linear(x, self.dense()).float()
        if self.rows is None:
            return product
        outputs = product.new_zeros(product.shape[0], self.segments[0].size)
        return outputs.index_copy_(1, self.rows, product)

    def lookup(self, ids: Tensor) -> Tensor:
        """weight[ids], float32 [ids, hidden]."""
        if self.rows is None:
            return functional.embedding(ids, self.dense()).float()
        position = torch.searchsorted(self.rows, ids).clamp_(max=len(self.rows) - 1)
        return self.dense()[position].float() * (self.rows[position] == ids)[:, None]

    def dense(self) -> Tensor:
        """The stacked matrix."""
        return self.cache.get(self, self.decoded) if self.plain is None else self.plain

    def decoded(self) -> Tensor:
        """The stacked matrix, made anew."""
        if len(self.deltas) == 1:
            return self.deltas[0].values().to(self.device, self.dtype)
        return torch.cat([delta.whole().to(self.device, self.dtype) for delta in self.deltas])

    def segmented(self) -> Iterator[tuple[Segment, Tensor]]:
        """Each segment's whole delta, float32 [segment's outputs, inputs]."""
        for segment, delta in zip(self.segments, self.deltas, strict=True):
            yield segment, delta.whole()

    def tensors(self) -> list[Tensor]:
        """What it holds itself."""
        return [tensor for tensor in (self.rows, self.plain) if tensor is not None]


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """A low-rank delta scaling * b @ a, never multiplied out. a: [r, inputs], b: [outputs, r]."""

    a: Tensor
    b: Tensor
    scaling: float
    segments: tuple[Segment]

    def product(self, x: Tensor) -> Tensor:
        """As `StackedWeight.product`."""
        inner = functional.linear(x, self.a.to(x.dtype))
        return functional.linear(inner, self.b.to(x.dtype)).float().mul_(self.scaling)

    def lookup(self, ids: Tensor) -> Tensor:
        """As `StackedWeight.lookup`."""
        rows = functional.embedding(ids, self.b).float()
        return (rows @ self.a.float()).mul_(self.scaling)

    def segmented(self) -> Iterator[tuple[Segment, Tensor]]:
        """As `StackedWeight.segmented`."""
        yield self.segments[0], (self.b.float() @ self.a.float()).mul_(self.scaling)

    def tensors(self) -> list[Tensor]:
        """As `StackedWeight.tensors`."""
        return [self.a, self.b]


Weight = StackedWeight | Factors
