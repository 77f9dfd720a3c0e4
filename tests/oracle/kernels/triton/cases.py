"""Random packed deltas, and batches with every way in which rows can want tasks.

Nothing here reads a bank: these tests run wherever torch and triton do.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer.kernels.device.factors import FactorSlots
from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.device.slots import DeltaSlots

NUM_SLOTS = 3
NUM_COLUMNS = 2

# Half a unit in the last place of the output, which is rounded once, relative to it; and what
# float32 sums in another order differ by, for sums of about 1.
TOLERANCE = {torch.bfloat16: (2.0**-8, 1e-4), torch.float16: (2.0**-11, 1e-4)}
# Composed weights are rounded to 16 bits before they are multiplied, each by at most that unit. The
# errors of a sum of about 1 add up to less than half a unit; the largest of some thousand sums, of
# three terms each, has been given eight times that.
ROUNDED_WEIGHTS = {torch.bfloat16: 2.0**-8 * 4, torch.float16: 2.0**-11 * 4}


@dataclass(frozen=True)
class Coding:
    """bits 0 stands for masks over an int4 vector."""

    bits: int
    group: int

    def __str__(self) -> str:
        return {0: "tall", 1: "sign"}.get(self.bits, f"int{self.bits}") + f"g{self.group}"


CODINGS = (
    Coding(4, 64),
    Coding(4, 32),
    Coding(4, 128),
    Coding(4, 256),
    Coding(4, 0),
    Coding(2, 64),
    Coding(2, 32),
    Coding(1, 0),
    Coding(0, 64),
    Coding(0, 32),
    Coding(0, 0),
)
SAMPLE = (Coding(4, 64), Coding(2, 64), Coding(1, 0), Coding(0, 64))


def random_slots(coding: Coding, shape: tuple[int, int], device: torch.device) -> DeltaSlots:
    """Slots filled with random bits, padding included, whose products are about 1."""
    if coding.bits == 0:
        shared = random_slots(Coding(4, coding.group), shape, device)
        slots = DeltaSlots.over(NUM_SLOTS, shared)
    else:
        slots = DeltaSlots.allocate(NUM_SLOTS, shape, coding.bits, coding.group, device)
    generator = torch.Generator().manual_seed(0)
    limits = torch.iinfo(slots.words.dtype)
    words = torch.randint(limits.min, limits.max + 1, slots.words.shape, generator=generator)
    slots.words.copy_(words.to(slots.words.dtype))
    scales = (
        torch.rand(slots.metas.shape, generator=generator).add_(1.0).mul_(2.0**14).to(torch.float16)
    )
    zeros = torch.randint(0, 1 << slots.bits, slots.metas.shape, generator=generator)
    bits = scales.view(torch.int16).to(torch.int64) & 0xFFFF | zeros << 16
    slots.metas.copy_(bits.to(torch.int32))
    slots.is_loaded.fill_(1)
    slots.row_scales.fill_(1.0)
    sizes = slots.dense(0).norm(dim=1)
    slots.row_scales.copy_(1 / sizes.clamp(min=2.0**-9).expand_as(slots.row_scales))
    slots.segments[shape[0] // 2 :] = 1
    return slots


def random_factors(
    rank: int, shape: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> FactorSlots:
    """Low-rank slots whose products are about 1."""
    slots = FactorSlots.allocate(NUM_SLOTS, shape, rank, dtype, device)
    generator = torch.Generator().manual_seed(1)
    slots.a[:, :rank] = torch.randn(NUM_SLOTS, rank, shape[1], generator=generator).to(slots.a)
    slots.b[:, :, :rank] = torch.randn(NUM_SLOTS, shape[0], rank, generator=generator).to(slots.b)
    slots.row_scales.fill_((rank * shape[1]) ** -0.5)
    slots.is_loaded.fill_(1)
    slots.segments[shape[0] // 2 :] = 1
    return slots


@dataclass(frozen=True)
class Batch:
    """The slot of each task, and the rows that want it."""

    num_rows: int
    tasks: tuple[tuple[int, tuple[int, ...]], ...]
    zero: bool = False

    def routes(self, device: torch.device) -> Routes:
        """Routes with room to spare; what is unused holds numbers that must not be read."""
        num_pairs = sum(len(rows) for _, rows in self.tasks)
        routes = Routes.allocate(
            self.num_rows + 3, len(self.tasks) + 2, num_pairs + 5, NUM_COLUMNS, device
        )
        for tensor in (routes.task_slots, routes.pair_rows, routes.pair_tasks, routes.row_pairs):
            tensor.fill_(1 << 20)
        routes.coefficients.fill_(torch.nan)
        counts = [len(rows) for _, rows in self.tasks]
        starts = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
        rows = torch.tensor([row for _, rows in self.tasks for row in rows], dtype=torch.int32)
        generator = torch.Generator().manual_seed(2)
        coefficients = torch.rand(NUM_COLUMNS, num_pairs, generator=generator) * 2 - 1
        if self.zero:
            coefficients.zero_()
        routes.fill([slot for slot, _ in self.tasks], starts, rows, coefficients)
        return routes


BATCHES: Mapping[str, Batch] = {
    "no-task": Batch(4, ()),
    "one-row": Batch(1, ((1, (0,)),)),
    "all-rows": Batch(5, ((0, tuple(range(5))),)),
    "some-rows": Batch(6, ((2, (1, 4)), (0, (0, 1, 5)), (1, (4,)))),
    "repeated-task": Batch(4, ((1, (0, 2)), (1, (2, 3)), (1, (2,)))),
    "empty-group": Batch(4, ((0, ()), (1, (1, 3)), (2, ()))),
    "zero-coefficients": Batch(4, ((0, (0, 1)), (1, (1, 3))), zero=True),
    "more-than-a-tile": Batch(37, ((0, tuple(range(0, 37, 2))), (2, tuple(range(37))))),
    "many-tasks": Batch(3, tuple((index % NUM_SLOTS, (index % 3,)) for index in range(9))),
}


def random_rows(num_rows: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Activations of about 1, in rows that are further apart than they are long."""
    generator = torch.Generator().manual_seed(3)
    return torch.randn(num_rows, width + 16, generator=generator).to(device, dtype)[:, :width]


def assert_near(actual: Tensor, expected: Tensor, *, rounded_weights: bool = False) -> None:
    """expected: in float32."""
    relative, absolute = TOLERANCE[actual.dtype]
    if rounded_weights:
        absolute = ROUNDED_WEIGHTS[actual.dtype]
    torch.testing.assert_close(actual.float(), expected, rtol=relative, atol=absolute)
