"""The compiled kernels, where they were built and this machine can run them."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path

# Before the library: both then share the threads of torch's OpenMP.
import torch as _torch  # noqa: F401

from taskmix_composer.kernels.native import abi

PATH = Path(__file__).with_name("libtaskmix_kernels.so")

Call = Callable[..., int]
"""An entry point; it returns 0 if it has done its work, and else ran out of memory."""


class Level(IntEnum):
    """Instruction sets that the kernels are compiled for; the values are `tm_level`'s."""

    AVX2 = 1
    AVX512 = 2


@dataclass(frozen=True, slots=True, eq=False)
class Kernels:
    """The entry points for one instruction set."""

    level: Level
    add_products: Call
    add_lookups: Call
    add_weights: Call
    scale_norms: Call


@cache
def load(level: Level | None = None, path: Path = PATH) -> Kernels | None:
    """The kernels for an instruction set, by default the best one of this machine.

    None if the library was not built, does not load, is older than this module, or the machine
    lacks the instructions.
    """
    try:
        library = ctypes.CDLL(str(path))
        best = library.tm_level()
        wanted = best if level is None else level
        return _kernels(library, Level(wanted)) if 0 < wanted <= best else None
    except (OSError, AttributeError):
        return None


def available() -> bool:
    """Whether this machine runs the kernels."""
    return load() is not None


def name() -> str:
    """The instruction set that the kernels use here, or "none"."""
    kernels = load()
    return "none" if kernels is None else kernels.level.name.lower()


def _kernels(library: ctypes.CDLL, level: Level) -> Kernels:
    return Kernels(
        level,
        add_products=_entry(library, "tm_add_products", level),
        add_lookups=_entry(library, "tm_add_lookups", level),
        add_weights=_entry(library, "tm_add_weights", level),
        scale_norms=_entry(library, "tm_scale_norms", level),
    )


def _entry(library: ctypes.CDLL, function: str, level: Level) -> Call:
    entry = library[f"{function}_{level.name.lower()}"]
    entry.argtypes = abi.ARGUMENTS[function]
    entry.restype = ctypes.c_int32
    return entry
