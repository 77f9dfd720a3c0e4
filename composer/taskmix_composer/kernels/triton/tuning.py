"""Launch settings by operation, device and shape: measured ones from a table, else safe ones."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
import triton
from torch import Tensor

from taskmix_composer.kernels.device.factors import FactorSlots
from taskmix_composer.kernels.device.slots import DeltaSlots

TABLE = Path(__file__).with_name("tuning.json")
INTERPRETED_PROGRAMS = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """How a kernel is launched.

    rows: batch rows that one pass over a task's codes serves.
    programs_per_core: programs on each multiprocessor.
    max_pieces: parts into which one tile's sum may be cut, a power of two from 2.
    registers: a thread's at most, so that more programs fit, or so that the assembler does not aim
        lower by itself and spill; None leaves it alone.
    """

    rows: int = 16
    warps: int = 4
    stages: int = 3
    programs_per_core: int = 3
    max_pieces: int = 8
    registers: int | None = None


DEFAULTS: Mapping[str, Mapping[int, Choice]] = {
    "products": {
        16: Choice(16, registers=168),
        32: Choice(32, programs_per_core=2),
        64: Choice(64, warps=8, programs_per_core=1),
    },
    "products-32": {16: Choice(16, registers=168)},
    "masked": {16: Choice(16, stages=2, programs_per_core=2)},
    "composed": {64: Choice(64, warps=16, stages=1, programs_per_core=1, registers=128)},
    "composed-1bit": {32: Choice(32, warps=8, stages=1, programs_per_core=1)},
    "lowrank": {
        16: Choice(16, registers=128),
        32: Choice(32, registers=168),
        64: Choice(64, stages=2, programs_per_core=2, registers=255),
    },
}
"""By operation and batch rows: what compiles without spills and leaves room for some programs.

Groups of 32 have entries of their own, since their scales take more registers.
"""


def choose(operation: str, slots: DeltaSlots | FactorSlots, x: Tensor) -> Choice:
    """The measured choice for this device, shape and number of rows, or the default."""
    num_rows = min(len(x), max_rows(x.device))
    choice = default(operation, num_rows, slots.group if isinstance(slots, DeltaSlots) else 0)
    shape = f"{operation} {slots.coding} {slots.rows}x{slots.columns} rows<={choice.rows}"
    measured = table().get(device_name(x.device), {}).get(shape)
    return replace(choice, **measured) if measured else choice


def default(operation: str, num_rows: int, group: int) -> Choice:
    """A safe choice for batches of this many rows."""
    choices = DEFAULTS.get(f"{operation}-{group}", DEFAULTS[operation])
    return choices[next((rows for rows in choices if num_rows <= rows), max(choices))]


@cache
def max_rows(device: torch.device) -> int:
    """Rows that one pass serves: before Hopper, the sums of more spill."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (9, 0):
        return 32
    return 64


@cache
def table() -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """Settings by device name, then by operation and shape."""
    return json.loads(TABLE.read_text(encoding="utf-8"))


@cache
def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


@cache
def num_cores(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def options(choice: Choice) -> dict[str, int | bool | None]:
    """What a launch takes beside the kernel's arguments."""
    return {
        "num_warps": choice.warps,
        "num_stages": choice.stages,
        "maxnreg": choice.registers,
        # Triton's default, which is going to change, named.
        "enable_fp_fusion": True,
    }


def num_programs(device: torch.device, choice: Choice) -> int:
    """Programs that fill the device."""
    if device.type != "cuda":
        return INTERPRETED_PROGRAMS
    return num_cores(device) * choice.programs_per_core


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on the CPU."""
    return bool(triton.knobs.runtime.interpret)
