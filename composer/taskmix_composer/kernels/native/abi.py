"""The structs of `taskmix_kernels.h`."""

import ctypes

import torch

_POINTER = ctypes.c_void_p
_INT = ctypes.c_int32
_LONG = ctypes.c_int64

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
"""The numbers of `tm_dtype`."""


class Source(ctypes.Structure):
    """`tm_source`: strips."""

    _fields_ = (
        ("data", _POINTER),
        ("stride", _LONG),
        ("scales_at", _LONG),
        ("extra_at", _LONG),
        ("plane_bytes", _LONG),
        ("num_outputs", _INT),
        ("num_inputs", _INT),
        ("coding", _INT),
        ("num_planes", _INT),
        ("group", _INT),
        ("zero", _INT),
    )


class Part(ctypes.Structure):
    """`tm_part`: a packed delta of one task, and where it lands."""

    _fields_ = (
        ("source", _POINTER),
        ("mask", _POINTER),
        ("rows", _POINTER),
        ("factor", ctypes.c_float),
        ("task", _INT),
        ("start", _INT),
        ("column", _INT),
    )


class Segment(ctypes.Structure):
    """`tm_segment`: parts that give the same outputs."""

    _fields_ = (("start", _INT), ("size", _INT), ("first_part", _INT), ("num_parts", _INT))


class Table(ctypes.Structure):
    """`tm_table`: all parts of a module."""

    _fields_ = (
        ("parts", _POINTER),
        ("segments", _POINTER),
        ("num_parts", _INT),
        ("num_segments", _INT),
        ("first_loose", _INT),
        ("num_outputs", _INT),
        ("num_inputs", _INT),
    )


class Pairs(ctypes.Structure):
    """`tm_pairs`: which rows use which tasks."""

    _fields_ = (
        ("starts", _POINTER),
        ("slots", _POINTER),
        ("used", _POINTER),
        ("coefficients", _POINTER),
        ("num_tasks", _INT),
        ("num_pairs", _INT),
        ("num_used", _INT),
    )


MATRIX = (_POINTER, _LONG, _INT)
"""The arguments that a matrix is passed as."""

ARGUMENTS = {
    "tm_add_products": (_POINTER, _POINTER, *MATRIX, *MATRIX, _INT),
    "tm_add_lookups": (_POINTER, _POINTER, *MATRIX, _POINTER),
    "tm_add_weights": (_POINTER, _POINTER, *MATRIX),
    "tm_scale_norms": (
        *MATRIX,
        *MATRIX,
        *(_POINTER, _LONG),
        *(_POINTER, _LONG, _POINTER, _POINTER),
        *(_INT, _INT, ctypes.c_float),
    ),
}
"""The entry points."""
