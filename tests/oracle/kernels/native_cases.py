"""Deltas of every kind that the native kernels read, and how far a product may be off."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.kernels.native import library
from taskmix_composer.kernels.native.library import Kernels, Level
from taskmix_composer.kernels.native.packing import pack
from taskmix_composer.kernels.products import Pairs, Part, PartTable
from taskmix_composer.kernels.reference import ReferencePart
from taskmix_composer.quant import encode, encode_rows, masked

# Rounding to nearest is off by at most this part of the result.
HALF_ULP = {torch.float32: 2**-24, torch.bfloat16: 2**-8, torch.float16: 2**-11}
# What float16 cannot hold at full precision.
SMALLEST = {torch.float32: 0.0, torch.bfloat16: 0.0, torch.float16: 2**-25}
SPAN = 64
FLAGS = {Level.AVX2: {"avx2", "fma", "bmi2"}, Level.AVX512: {"avx512vl", "avx512_vnni"}}


def kernels_at(level: Level) -> Kernels:
    """The kernels for an instruction set; skips only where they cannot be built or run."""
    found = library.load(level)
    if found is None:
        if shutil.which("cc") is None:
            pytest.skip("there is no C compiler to build the kernels with")
        if not FLAGS[level] <= processor_flags():
            pytest.skip(f"this machine lacks {level.name}")
        pytest.fail("the kernels were not built; reinstall with `pip install --editable .`")
    return found


def processor_flags() -> set[str]:
    """Instructions of this machine, as Linux names them."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def weights(shape: tuple[int, int], seed: int) -> Tensor:
    """A float32 delta with some zeros, and columns of different size."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(shape, generator=generator) * 1e-3
    matrix *= torch.exp(torch.randn(shape[1], generator=generator))
    matrix[torch.rand(shape, generator=generator) < 0.1] = 0.0
    return matrix


def by_scheme(scheme: str) -> Callable[[tuple[int, int], int], EncodedDelta]:
    """Deltas under a scheme, every row coded."""
    return lambda shape, seed: encode_rows(weights(shape, seed), None, Scheme.parse(scheme))


def some_rows(scheme: str) -> Callable[[tuple[int, int], int], EncodedDelta]:
    """Deltas with about a third of their rows."""

    def make(shape: tuple[int, int], seed: int) -> EncodedDelta:
        generator = torch.Generator().manual_seed(seed)
        rows = (torch.rand(shape[0], generator=generator) < 0.3).nonzero().squeeze(1)
        rows = rows if len(rows) else torch.tensor([shape[0] - 1])
        return encode_rows(weights(shape, seed), rows, Scheme.parse(scheme))

    return make


def masked_over(scheme: str) -> Callable[[tuple[int, int], int], EncodedDelta]:
    """Deltas that keep a part of a shared one, which is the same for every seed."""

    def make(shape: tuple[int, int], seed: int) -> EncodedDelta:
        shared = some_rows(scheme)(shape, 99) if "rows" in scheme else shared_delta(scheme, shape)
        generator = torch.Generator().manual_seed(seed)
        kept = torch.rand(shared.coded_shape, generator=generator) < 0.4
        return masked.encode(kept, shared, torch.ones(shared.coded_shape), 0.7)

    return make


_SHARED: dict[tuple[str, tuple[int, int]], EncodedDelta] = {}


def shared_delta(scheme: str, shape: tuple[int, int]) -> EncodedDelta:
    """One delta for all that are coded over it."""
    key = (scheme, shape)
    if key not in _SHARED:
        _SHARED[key] = by_scheme(scheme)(shape, 99)
    return _SHARED[key]


def offset(shape: tuple[int, int], seed: int) -> EncodedDelta:
    """An offset of two bits from a shared delta of three."""
    own = encode(weights(shape, seed), Scheme.parse("int2"))
    return EncodedDelta(
        own.codec, own.shape, own.params, own.parts, shared=shared_delta("int3", shape)
    )


KINDS: Mapping[str, Callable[[tuple[int, int], int], EncodedDelta]] = {
    **{
        scheme: by_scheme(scheme)
        for scheme in (
            "int2",
            "int3",
            "int4",
            "int8",
            "int2(group=0)",
            "int4(group=0)",
            "int4(group=32)",
            "int8(group=96)",
            "int4(group=1024)",
            "sign",
            "sign(salient=0.2)",
            "sparse(density=0.1)",
            "sparse(density=0.3,bits=2)",
            "sparse(density=0.3,bits=4)",
        )
    },
    "rows of int4": some_rows("int4"),
    "rows of sign": some_rows("sign(salient=0.4)"),
    "rows of sparse": some_rows("sparse(density=0.2,bits=3)"),
    "mask over int4": masked_over("int4"),
    "mask over int8(group=96)": masked_over("int8(group=96)"),
    "mask over sign": masked_over("sign(salient=0.2)"),
    "mask over sparse": masked_over("sparse(density=0.3)"),
    "offset": offset,
}


@dataclass(frozen=True)
class Batch:
    """Which rows use which tasks: `sizes` pairs of each task, columns of coefficients."""

    num_rows: int
    sizes: Sequence[int]
    num_columns: int = 1
    are_zero: bool = False

    def pairs(self, seed: int = 0) -> Pairs:
        """Rows are drawn with repetition, so that one task may have a row twice."""
        generator = torch.Generator().manual_seed(seed)
        starts = torch.tensor([0, *self.sizes]).cumsum(0).to(torch.int32)
        rows = torch.randint(self.num_rows, (int(starts[-1]),), generator=generator)
        coefficients = torch.randn(self.num_columns, len(rows), generator=generator)
        return Pairs(starts, rows.to(torch.int32), coefficients * (not self.are_zero))


def table_of(parts: Sequence[ReferencePart], shape: tuple[int, int]) -> PartTable:
    """The same parts packed; what they are coded over is packed once."""
    shared = {
        id(part.delta.shared): pack(part.delta.shared)
        for part in parts
        if part.delta.shared is not None
    }
    packed = [
        Part(piece, part.task, part.start, part.column)
        for part in parts
        for piece in pack(part.delta, shared.get(id(part.delta.shared)) or ()) or ()
    ]
    return PartTable.of(packed, *shape)


def magnitudes(x: Tensor, parts: Sequence[ReferencePart], pairs: Pairs, num_outputs: int) -> Tensor:
    """What all terms of the products add up to in magnitude, float32 [rows, outputs]."""
    total = torch.zeros(len(x), num_outputs)
    for part, weight, factors in _terms(x, parts, pairs):
        sums = x.float().abs() @ weight.abs().T
        total[:, part.start : part.start + len(weight)] += factors[:, None] * sums
    return total


def int8_deviations(
    x: Tensor, parts: Sequence[ReferencePart], pairs: Pairs, num_outputs: int
) -> Tensor:
    """The standard deviation that rounding inputs to int8 gives outputs, float32 [rows, outputs].

    An error is uniform over a step, a 127th of the largest magnitude of a span of inputs, and
    independent of the other inputs' errors. Parts that share a row share its errors.
    """
    spans = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % SPAN)).view(len(x), -1, SPAN)
    steps = spans.abs().amax(dim=2, keepdim=True).div(127).expand_as(spans)
    variances = steps.reshape(len(x), -1)[:, : x.shape[1]].square() / 12
    total = torch.zeros(len(x), num_outputs)
    for part, weight, factors in _terms(x, parts, pairs):
        deviations = (variances @ weight.square().T).sqrt()
        total[:, part.start : part.start + len(weight)] += factors[:, None] * deviations
    return total


def _terms(
    x: Tensor, parts: Sequence[ReferencePart], pairs: Pairs
) -> Iterator[tuple[ReferencePart, Tensor, Tensor]]:
    """Each part, its weights, and the sum of its coefficients' magnitudes for each row."""
    for part in parts:
        mine = slice(int(pairs.starts[part.task]), int(pairs.starts[part.task + 1]))
        factors = torch.zeros(len(x))
        factors.index_add_(0, pairs.rows[mine].long(), pairs.coefficients[part.column, mine].abs())
        yield part, part.weight, factors
