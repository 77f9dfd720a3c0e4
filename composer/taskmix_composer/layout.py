"""The bytes of a coded matrix: bit packing and group geometry, defined here and nowhere else."""

import math

import torch
from torch import Tensor

CODES_PER_PACK = 8
PACKABLE_BITS = (2, 3, 4, 8)
MAX_BLOCK_ELEMENTS = 1 << 14


def packed_width(columns: int, bits: int) -> int:
    """Bytes that one row of `columns` codes occupies."""
    return num_groups(columns, CODES_PER_PACK) * bits


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack uint8 codes [rows, columns] into uint8 [rows, packed_width(columns, bits)].

    Eight codes make one little-endian word of `bits` bytes, the first code in its lowest bits;
    a row whose length is not a multiple of eight is padded with zero codes.
    """
    lanes = grouped(codes, CODES_PER_PACK)
    octets = codes.new_zeros((*lanes.shape[:2], bits))
    for lane, octet, shift in _overlaps(bits):
        octets[:, :, octet] |= _shifted(lanes[:, :, lane], shift)
    return octets.flatten(1)


def unpack_codes(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Invert `pack_codes`: uint8 [rows, packed_width(columns, bits)] -> uint8 [rows, columns]."""
    octets = packed.view(packed.shape[0], num_groups(columns, CODES_PER_PACK), bits)
    lanes = packed.new_zeros((*octets.shape[:2], CODES_PER_PACK))
    for lane, octet, shift in _overlaps(bits):
        lanes[:, :, lane] |= _shifted(octets[:, :, octet], -shift)
    return ungrouped(lanes.bitwise_and_((1 << bits) - 1), columns)


def _overlaps(bits: int) -> list[tuple[int, int, int]]:
    """Which codes of a pack reach into which of its bytes, and how far to the left they lie."""
    return [
        (lane, octet, lane * bits - octet * 8)
        for lane in range(CODES_PER_PACK)
        for octet in range(lane * bits // 8, (lane * bits + bits - 1) // 8 + 1)
    ]


def _shifted(octets: Tensor, shift: int) -> Tensor:
    """Shift bytes to the left, or to the right if `shift` is negative, losing what falls out."""
    return octets << shift if shift >= 0 else octets >> -shift


def num_groups(columns: int, group: int) -> int:
    """Groups of `group` columns that a row has, the last one possibly short."""
    return -(-columns // group)


def matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """The [rows, columns] under which a tensor is coded; one of at most one axis is a row."""
    return (1, math.prod(shape)) if len(shape) < 2 else (shape[0], math.prod(shape[1:]))


def grouped(matrix: Tensor, group: int) -> Tensor:
    """View [rows, columns] as [rows, groups, group], the last group padded with zeros."""
    rows, columns = matrix.shape
    groups = num_groups(columns, group)
    padded = torch.nn.functional.pad(matrix, (0, groups * group - columns))
    return padded.view(rows, groups, group)


def ungrouped(values: Tensor, columns: int) -> Tensor:
    """Invert `grouped`: [rows, groups, group] -> [rows, columns]."""
    return values.flatten(1)[:, :columns]


def rows_per_block(columns: int) -> int:
    """Rows to code at a time.

    A block stays in a core's cache and below the size at which torch splits an operation over
    threads, whose waiting costs more than it saves on operations this small.
    """
    return max(1, MAX_BLOCK_ELEMENTS // max(1, columns))
