"""What a call of a kernel is about: a module's parts, and which rows use which tasks."""

import ctypes
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from taskmix_composer.kernels.native import abi
from taskmix_composer.kernels.native.packing import PackedDelta
from taskmix_composer.kernels.native.strips import Strips


class OperandError(ValueError):
    """Tensors that a kernel cannot work on, or that do not fit each other."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A packed delta of the step's task number `task`, scaled by row `column` of the coefficients.

    Its outputs land at start, start + 1, ..., or at start + rows[i] where it has rows.
    """

    delta: PackedDelta
    task: int
    start: int
    column: int

    def __post_init__(self) -> None:
        if min(self.task, self.start, self.column) < 0:
            raise OperandError(f"task, start and column of {self} must not be negative")

    @property
    def end(self) -> int:
        """One past its last output."""
        rows = self.delta.rows
        return self.start + (self.delta.shape[0] if rows is None else int(rows[-1]) + 1)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class PartTable:
    """The parts of one module, in memory that the kernels read.

    num_tasks, num_columns: how many the pairs must have at least. address: of the table.
    """

    num_outputs: int
    num_inputs: int
    num_tasks: int
    num_columns: int
    parts: tuple[Part, ...]
    address: int
    _memory: tuple[object, ...]

    @classmethod
    def of(cls, parts: Sequence[Part], num_outputs: int, num_inputs: int) -> "PartTable":
        """The table of parts of a module with so many outputs and inputs."""
        for part in parts:
            if part.end > num_outputs or part.delta.shape[1] != num_inputs:
                raise OperandError(
                    f"a delta of shape {part.delta.shape} from output {part.start} on does not "
                    f"fit {num_outputs} outputs of {num_inputs} inputs"
                )
        tiled, loose = _by_segment(parts, num_outputs)
        ordered = [part for tile in tiled.values() for part in tile] + loose
        sources = _sources({id(part.delta.strips): part.delta.strips for part in ordered})
        structs = (abi.Part * len(ordered))(*(_part(part, sources) for part in ordered))
        segments = (abi.Segment * len(tiled))(*_segments(tiled))
        table = abi.Table(
            ctypes.addressof(structs),
            ctypes.addressof(segments),
            len(ordered),
            len(tiled),
            len(ordered) - len(loose),
            num_outputs,
            num_inputs,
        )
        return cls(
            num_outputs=num_outputs,
            num_inputs=num_inputs,
            num_tasks=max((part.task + 1 for part in ordered), default=0),
            num_columns=max((part.column + 1 for part in ordered), default=0),
            parts=tuple(ordered),
            address=ctypes.addressof(table),
            _memory=(table, structs, segments, sources),
        )


@dataclass(frozen=True, slots=True, eq=False, init=False, weakref_slot=True)
class Pairs:
    """Which rows of a batch use which tasks, and how much of them.

    starts: int32 [num_tasks + 1], the pairs of each task. rows: int32 [num_pairs].
    coefficients: float32 [columns, num_pairs]. A row may occur in several pairs, of one task too.
    num_rows: how many a batch must have at least. address: of what the kernels read.
    """

    starts: Tensor
    rows: Tensor
    coefficients: Tensor
    num_tasks: int
    num_columns: int
    num_rows: int
    address: int
    _memory: tuple[object, ...]

    def __init__(self, starts: Tensor, rows: Tensor, coefficients: Tensor) -> None:
        _check_pairs(starts, rows, coefficients)
        used, slots = np.unique(rows.numpy(), return_inverse=True)
        slots = slots.astype(np.int32)
        coefficients = coefficients.contiguous()
        struct = abi.Pairs(
            starts.data_ptr(),
            slots.ctypes.data,
            used.ctypes.data,
            coefficients.data_ptr(),
            len(starts) - 1,
            len(rows),
            len(used),
        )
        values = {
            "starts": starts,
            "rows": rows,
            "coefficients": coefficients,
            "num_tasks": len(starts) - 1,
            "num_columns": len(coefficients),
            "num_rows": int(used[-1]) + 1 if len(used) else 0,
            "address": ctypes.addressof(struct),
            "_memory": (struct, used, slots),
        }
        for field, value in values.items():
            object.__setattr__(self, field, value)


def _check_pairs(starts: Tensor, rows: Tensor, coefficients: Tensor) -> None:
    is_typed = (starts.dtype, rows.dtype) == (torch.int32, torch.int32)
    if not is_typed or starts.dim() != 1 or rows.dim() != 1:
        raise OperandError("starts and rows must be int32 vectors")
    if coefficients.dtype is not torch.float32 or coefficients.shape[1:] != rows.shape:
        raise OperandError(
            f"coefficients must be float32 [columns, {len(rows)}], got {coefficients.dtype} "
            f"{tuple(coefficients.shape)}"
        )
    bounds = starts.numpy()
    is_ascending = len(bounds) > 0 and bounds[0] == 0 and bool((bounds[1:] >= bounds[:-1]).all())
    if not is_ascending or bounds[-1] != len(rows):
        raise OperandError(f"starts must ascend from 0 to the {len(rows)} pairs, got {bounds}")
    if len(rows) and int(rows.min()) < 0:
        raise OperandError("rows must not be negative")


Geometry = tuple[int, int]
"""The first output of a segment, and one past its last."""


def _by_segment(
    parts: Iterable[Part], num_outputs: int
) -> tuple[dict[Geometry, list[Part]], list[Part]]:
    """Parts by the outputs that they give, deltas with the same strips together; and loose ones.

    A part is loose if it has rows, or overlaps others in part. Segments then cover all outputs.
    """
    tiles: dict[Geometry, list[Part]] = {}
    loose = []
    for part in parts:
        geometry = (part.start, part.end)
        overlaps = any(
            start < part.end and part.start < end
            for start, end in tiles
            if (start, end) != geometry
        )
        if part.delta.rows is not None or overlaps:
            loose.append(part)
        else:
            tiles.setdefault(geometry, []).append(part)
    if loose:
        tiles.update({gap: [] for gap in _gaps(sorted(tiles), num_outputs)})
    return {geometry: _together(tiles[geometry]) for geometry in sorted(tiles)}, loose


def _together(parts: Sequence[Part]) -> list[Part]:
    """The same parts, those with the same strips one after another."""
    order: dict[int, int] = {}
    for part in parts:
        order.setdefault(id(part.delta.strips), len(order))
    return sorted(parts, key=lambda part: order[id(part.delta.strips)])


def _gaps(taken: Sequence[Geometry], num_outputs: int) -> list[Geometry]:
    """What disjoint ascending segments leave of [0, num_outputs)."""
    ends = [0, *(end for _, end in taken)]
    starts = [*(start for start, _ in taken), num_outputs]
    return [(end, start) for end, start in zip(ends, starts, strict=True) if end < start]


def _segments(tiles: Mapping[Geometry, Sequence[Part]]) -> Iterable[abi.Segment]:
    first = 0
    for (start, end), parts in tiles.items():
        yield abi.Segment(start, end - start, first, len(parts))
        first += len(parts)


def _sources(strips: Mapping[int, Strips]) -> dict[int, abi.Source]:
    return {
        identity: abi.Source(
            each.data.data_ptr(),
            each.data.stride(0),
            each.scales_at,
            each.extra_at,
            each.plane_bytes,
            *each.shape,
            each.coding,
            each.num_planes,
            each.group,
            each.zero,
        )
        for identity, each in strips.items()
    }


def _part(part: Part, sources: Mapping[int, abi.Source]) -> abi.Part:
    delta = part.delta
    return abi.Part(
        ctypes.addressof(sources[id(delta.strips)]),
        None if delta.mask is None else delta.mask.data_ptr(),
        None if delta.rows is None else delta.rows.data_ptr(),
        delta.factor,
        part.task,
        part.start,
        part.column,
    )
