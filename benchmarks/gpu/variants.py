"""Every kernel variant that a launcher can ask for, as Triton can compile it without a device."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel

from taskmix_composer.kernels.triton import (
    composed,
    lookups,
    lowrank,
    masked,
    pieces,
    products,
    tuning,
    weights,
)

CAPABILITIES = (80, 90)
DTYPES = ("bf16", "fp16")
GROUPS = (32, 64, 128, 0)
WORDS = {1: "*u8", 2: "*i16", 4: "*i32", 0: "*i32"}
ACTIVATIONS = ("x", "y", "out", "base", "a", "b")
FLOATS = ("partials", "shrunk", "expanded", "coefficients", "row_scales")
INTEGERS = ("N", "K", "groups", "rank", "blocks", "max_pairs", "max_terms", "programs")
# Multiples of 16 in any model that these kernels are for.
DIVISIBLE = ("N", "K", "rank", "stride_x", "stride_y", "stride_out", "stride_base")


@dataclass(frozen=True, slots=True)
class Variant:
    """A kernel with its compile-time arguments.

    bits, shared_bits: of the deltas, and of the vector under masks.
    ones: arguments that are 1, which the launcher's compiler takes as constants.
    """

    name: str
    kernel: Any
    constants: Mapping[str, object]
    choice: tuning.Choice
    bits: int = 4
    shared_bits: int = 0
    dtype: str = "bf16"
    ones: tuple[str, ...] = ()
    capabilities: tuple[int, ...] = CAPABILITIES

    def compiled(self, capability: int) -> CompiledKernel:
        """Compile for a device of this capability."""
        constants = {**self.constants, **dict.fromkeys(self.ones, 1)}
        signature = {name: self._type_of(name, constants) for name in self.kernel.arg_names}
        aligned = [
            index
            for index, (name, kind) in enumerate(signature.items())
            if kind.startswith("*") or name in DIVISIBLE
        ]
        attributes = {(index,): [["tt.divisibility", 16]] for index in aligned}
        source = ASTSource(self.kernel, signature, constexprs=constants, attrs=attributes)
        target = GPUTarget("cuda", capability, 32)
        return triton.compile(source, target=target, options=tuning.options(self.choice))

    def _type_of(self, name: str, constants: Mapping[str, object]) -> str:
        if name in constants:
            return "constexpr"
        if name in ACTIVATIONS:
            return f"*{self.dtype}"
        if name in FLOATS:
            return "*fp32"
        if name in ("words", "shared_words", "masks"):
            return WORDS[{"words": self.bits, "masks": 1}.get(name, self.shared_bits)]
        if name == "ids":
            return "*i64"
        is_number = name in INTEGERS or name.startswith("stride") or name == "blocks_per_group"
        return "i32" if is_number else "*i32"


def all_variants() -> Iterator[Variant]:
    """What the report covers."""
    for dtype in DTYPES:
        for group in GROUPS:
            yield from variants(dtype, group)
        yield from ungrouped_variants(dtype)


def variants(dtype: str, group: int) -> Iterator[Variant]:
    """Kernels that read codes in groups."""
    coding = {"GROUP_PLANES": products.group_planes(group)}
    for bits in (4, 2):
        name = f"int{bits} group {group} {dtype}"
        for rows in (16,) if group == 32 else (16, 32, 64):
            yield _products(name, bits, group, dtype, rows)
        blended = {**coding, "BITS": bits, "SHARED_BITS": 0}
        yield from _blending(name, blended, bits, 0, dtype)
    name = f"tall over int4 group {group} {dtype}"
    choice = tuning.default("masked", 16, group)
    constants = {**coding, "BITS": 4, "TASKS": masked.TASKS, "ROWS": choice.rows}
    yield Variant(
        f"masked products, {name}, {choice.rows} rows",
        masked.masked_kernel,
        {**constants, **_common(choice)},
        choice,
        dtype=dtype,
        ones=() if group == 0 else ("blocks_per_group",),
    )
    yield from _blending(name, {**coding, "BITS": 1, "SHARED_BITS": 4}, 1, 4, dtype)


def ungrouped_variants(dtype: str) -> Iterator[Variant]:
    """Kernels that read signs or factors, and the one that all share."""
    for rows in (16, 32, 64):
        yield _products(f"sign {dtype}", 1, 0, dtype, rows)
    signs = {"BITS": 1, "GROUP_PLANES": products.group_planes(0), "SHARED_BITS": 0}
    yield from _blending(f"sign {dtype}", signs, 1, 0, dtype)
    for rank in (16, 64):
        for rows in (16, 32, 64):
            yield from _lowrank(dtype, rank, rows)
    for tasks, max_pieces in ((1, 8), (masked.TASKS, 8), (1, 2)):
        constants = {
            "TASKS": tasks,
            "MAX_PIECES": max_pieces,
            "OUTPUTS": pieces.GATHER_OUTPUTS,
            "WIDE": False,
        }
        name = f"gather, {max_pieces} pieces of {tasks} tasks, {dtype}"
        yield Variant(name, pieces.gather_kernel, constants, tuning.Choice(), dtype=dtype)


def _common(choice: tuning.Choice, *, is_ragged: bool = False) -> dict[str, object]:
    return {
        "MAX_PIECES": choice.max_pieces,
        "IS_RAGGED": is_ragged,
        "WIDE": False,
        "STAGES": choice.stages,
    }


def _products(name: str, bits: int, group: int, dtype: str, rows: int) -> Variant:
    choice = tuning.default("products", rows, group)
    constants = {
        "BITS": bits,
        "GROUP_PLANES": products.group_planes(group),
        "MAX_ROWS": choice.rows,
        **_common(choice),
    }
    ones = () if group == 0 else ("blocks_per_group",)
    return Variant(
        f"products, {name}, {rows} rows",
        products.products_kernel,
        constants,
        choice,
        bits,
        dtype=dtype,
        ones=ones,
        capabilities=(90,) if rows == 64 else CAPABILITIES,
    )


def _blending(
    name: str, coding: Mapping[str, object], bits: int, shared_bits: int, dtype: str
) -> Iterator[Variant]:
    """Composed products, written weights and lookups of one coding."""
    choice = tuning.default("composed-1bit" if bits == 1 else "composed", 64, 64)
    rest = (bits, shared_bits, dtype)
    extra = {"LARGEST": composed.LARGEST_STEP, "ROWS": choice.rows, "WIDE": False}
    yield Variant(f"composed, {name}", composed.composed_kernel, {**coding, **extra}, choice, *rest)
    eight, one = tuning.Choice(warps=8), tuning.Choice(warps=1)
    plain = {**coding, "WIDE": False}
    yield Variant(f"weights, {name}", weights.weights_kernel, plain, eight, *rest)
    yield Variant(f"lookups, {name}", lookups.lookups_kernel, plain, one, *rest)


def _lowrank(dtype: str, rank: int, rows: int) -> Iterator[Variant]:
    choice = tuning.default("lowrank", rows, 0)
    shape = {"RANKS": rank, "ROWS": choice.rows, "MAX_PIECES": choice.max_pieces, "WIDE": False}
    name = f"rank {rank} {dtype}, {rows} rows"
    steps = {"INPUTS": lowrank.INPUTS, "STAGES": choice.stages}
    yield Variant(f"shrink, {name}", lowrank.shrink_kernel, {**shape, **steps}, choice, dtype=dtype)
    yield Variant(f"expand, {name}", lowrank.expand_kernel, shape, choice, dtype=dtype)
