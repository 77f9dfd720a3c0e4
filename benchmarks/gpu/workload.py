"""Random packed deltas and batches, of a model's shapes or of small ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from taskmix_composer.kernels.device.factors import FactorSlots
from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.device.slots import DeltaSlots

GROUP = 64
BITS = {"int4": 4, "int2": 2, "sign": 1}
SCHEMES = (*BITS, "tall")

# Outputs and inputs of a layer's linears: fused as they are served.
LLAMA_3_8B: Mapping[str, tuple[int, int]] = {
    "qkv": (6144, 4096),
    "o": (4096, 4096),
    "gate_up": (28672, 4096),
    "down": (4096, 14336),
}
SMALL: Mapping[str, tuple[int, int]] = {"down": (64, 288)}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured; the small one shows that everything runs.

    cold_bytes: packed deltas that calls go round, several times what a device's cache holds.
    num_layers: measured for a step of `model_layers`; all layers are alike.
    """

    linears: Mapping[str, tuple[int, int]]
    num_layers: int
    model_layers: int
    batch_sizes: Sequence[int]
    task_counts: Sequence[int]
    mix_counts: Sequence[int]
    step_rows: int
    cold_bytes: int
    copy_bytes: int
    num_replays: int


FULL = Scale(
    linears=LLAMA_3_8B,
    num_layers=4,
    model_layers=32,
    batch_sizes=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    task_counts=(1, 2, 4, 8, 16, 32),
    mix_counts=(1, 4, 16, 64),
    step_rows=32,
    cold_bytes=400_000_000,
    copy_bytes=2_000_000_000,
    num_replays=30,
)
SMOKE = Scale(
    linears=SMALL,
    num_layers=1,
    model_layers=2,
    batch_sizes=(3,),
    task_counts=(2,),
    mix_counts=(2,),
    step_rows=3,
    cold_bytes=1,
    copy_bytes=1 << 16,
    num_replays=2,
)


def random_slots(
    scheme: str, num_slots: int, shape: tuple[int, int], device: torch.device
) -> DeltaSlots:
    """Slots of random bits."""
    if scheme == "tall":
        slots = DeltaSlots.over(num_slots, random_slots("int4", 1, shape, device))
    else:
        slots = DeltaSlots.allocate(num_slots, shape, BITS[scheme], GROUP, device)
    limits = torch.iinfo(slots.words.dtype)
    slots.words.random_(limits.min, limits.max + 1)
    # A scale of 1 in float16, a zero code in the middle.
    slots.metas.fill_(0x3C00 | (1 << slots.bits >> 1) << 16)
    slots.row_scales.fill_(1e-4)
    slots.is_loaded.fill_(1)
    return slots


def random_factors(
    rank: int, num_slots: int, shape: tuple[int, int], device: torch.device
) -> FactorSlots:
    """Low-rank slots of random factors."""
    slots = FactorSlots.allocate(num_slots, shape, rank, torch.bfloat16, device)
    slots.a.normal_()
    slots.b.normal_()
    slots.row_scales.fill_(1e-4)
    slots.is_loaded.fill_(1)
    return slots


def routes(tasks: Sequence[Sequence[int]], slots: Sequence[int], device: torch.device) -> Routes:
    """Routes of the rows of each task, whose deltas lie in these slots."""
    rows = torch.tensor([row for wanted in tasks for row in wanted], dtype=torch.int32)
    counts = torch.tensor([0, *map(len, tasks)])
    num_rows = int(rows.max()) + 1
    found = Routes.allocate(num_rows, len(tasks), len(rows), 1, device)
    found.fill(slots, counts.cumsum(0).to(torch.int32), rows, torch.rand(1, len(rows)) - 0.5)
    return found


def spread_rows(num_rows: int, num_tasks: int, per_row: int) -> list[list[int]]:
    """The rows of each task if row r wants tasks r, r + 1, ...: at most `per_row` of them."""
    tasks: list[list[int]] = [[] for _ in range(num_tasks)]
    for row in range(max(num_rows, num_tasks)):
        for step in range(min(per_row, num_tasks)):
            wanted = tasks[(row + step) % num_tasks]
            if row % num_rows not in wanted:
                wanted.append(row % num_rows)
    return [sorted(rows) for rows in tasks]
