"""What each codec's parts look like: their shapes, dtypes and parameters."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from taskmix_composer.errors import BankFormatError
from taskmix_composer.layout import PACKABLE_BITS, matrix_shape, num_groups, packed_width
from taskmix_composer.tensorfile import DTYPE_NAMES

Shape = tuple[int, ...]
Params = Mapping[str, int | float]
PartShapes = dict[str, Shape]


def check_parts(codec: str, shape: Shape, params: Params, parts: Mapping[str, Tensor]) -> None:
    """Refuse parts that cannot code rows of shape `shape`."""
    if codec not in _PART_SHAPES:
        known = ", ".join(_PART_SHAPES)
        raise BankFormatError(f"codec {codec!r} is unknown; this version reads {known}")
    shapes = {part: tuple(tensor.shape) for part, tensor in parts.items()}
    expected = _PART_SHAPES[codec](shape, params, shapes)
    if shapes != expected:
        raise BankFormatError(f"{codec} parts have shapes {shapes}, not {expected}")
    for part, tensor in parts.items():
        if tensor.dtype not in _PART_DTYPES[part]:
            raise BankFormatError(f"part {part} has dtype {tensor.dtype}")


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


def _sign_shapes(shape: Shape, params: Params, found: PartShapes) -> PartShapes:
    _check_params(params, {"factor"})
    rows, columns = matrix_shape(shape)
    signs: PartShapes = {"signs": (rows, packed_width(columns, 1)), "scales": (rows, 1)}
    if found.keys() == signs.keys():
        return signs
    num_salient = (found.get("salient") or (0,))[0]
    sizes = {"highs": (num_salient, 1), "sizes": (num_salient, packed_width(columns, 1))}
    return {**signs, "salient": (num_salient,), **sizes}


def _sparse_shapes(shape: Shape, params: Params, found: PartShapes) -> PartShapes:
    _check_params(params, {"bits", "kept", "factor"})
    rows, columns = matrix_shape(shape)
    bits, kept = params["bits"], params["kept"]
    if bits not in (1, *PACKABLE_BITS) or not isinstance(bits, int):
        raise BankFormatError(f"sparse codes of {bits} bits are unknown")
    if not isinstance(kept, int) or kept < 1 or len(shape) < 2:
        raise BankFormatError(f"{kept} kept weights in a row of shape {shape} are malformed")
    mask, codes = packed_width(columns, 1), packed_width(kept, bits)
    return {"mask": (rows, mask), "codes": (rows, codes), "scales": (rows, 1)}


def _masked_shapes(shape: Shape, params: Params, found: PartShapes) -> PartShapes:
    _check_params(params, {"scale"})
    rows, columns = matrix_shape(shape)
    return {"mask": (rows, packed_width(columns, 1))}


def _plane_shapes(shape: Shape, params: Params, found: PartShapes) -> PartShapes:
    _check_params(params, set())
    rows, columns = matrix_shape(shape)
    return {"mask": (rows, packed_width(columns, 1))}


def _exact_shapes(shape: Shape, params: Params, found: PartShapes) -> PartShapes:
    _check_params(params, set())
    streams = {part: found.get(part, ()) for part in ("escapes", "levels", "steps")}
    if any(len(length) != 1 for length in streams.values()):
        raise BankFormatError(f"the streams of an exact tensor are malformed: {found}")
    return streams


def _raw_shapes(shape: Shape, params: Params, found: PartShapes) -> PartShapes:
    _check_params(params, set())
    return {"tuned": shape}


_PART_SHAPES: Mapping[str, Callable[[Shape, Params, PartShapes], PartShapes]] = {
    "dense": _dense_shapes,
    "affine": _affine_shapes,
    "lowrank": _lowrank_shapes,
    "sign": _sign_shapes,
    "sparse": _sparse_shapes,
    "masked": _masked_shapes,
    "plane": _plane_shapes,
    "exact": _exact_shapes,
    "raw": _raw_shapes,
}
ARCHIVAL_CODECS = frozenset({"exact", "raw"})
"""Codecs of the fine-tuned tensor in place of its difference from the base's."""
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_PART_DTYPES: Mapping[str, tuple[torch.dtype, ...]] = {
    "values": (torch.float32, torch.bfloat16),
    "codes": (torch.uint8,),
    "scales": (torch.float16,),
    "zeros": (torch.uint8,),
    "signs": (torch.uint8,),
    "salient": (torch.int32,),
    "highs": (torch.float16,),
    "sizes": (torch.uint8,),
    "mask": (torch.uint8,),
    "steps": (torch.uint8,),
    "escapes": (torch.uint8,),
    "levels": (torch.uint8,),
    "tuned": tuple(DTYPE_NAMES),
    "a": _FLOATS,
    "b": _FLOATS,
}


def _check_params(params: Params, names: set[str]) -> None:
    if params.keys() != names:
        raise BankFormatError(f"the codec's parameters are {sorted(names)}, got {sorted(params)}")
    if not all(math.isfinite(value) for value in params.values()):
        raise BankFormatError("the codec's parameters must be finite")
