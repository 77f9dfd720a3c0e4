"""A decode step of a Llama-3-8B-shaped stack: the base's linears and what is added to them.

Some layers are measured, and the time is given for all, which are alike. Embedding, head,
attention and norms are left out of every column.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu import workload
from benchmarks.gpu.bitdelta import add_binary
from benchmarks.gpu.timing import Clock
from benchmarks.gpu.workload import Scale
from taskmix_composer.kernels.device.factors import FactorSlots
from taskmix_composer.kernels.device.routes import Routes
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.ops import Ops

Measurement = Mapping[str, object]
Added = Callable[[Tensor, Tensor, int], None]
"""From the y and x of a linear, counted over all layers, to what is added to y."""

RANKS = (16, 64)


class Stack:
    """The base's linears of some layers, with an x and a y for each."""

    def __init__(self, scale: Scale, num_rows: int, device: torch.device) -> None:
        self.shapes = [*scale.linears.values()] * scale.num_layers
        options = {"device": device, "dtype": torch.bfloat16}
        self.weights = [torch.randn(*shape, **options) for shape in self.shapes]
        self.x = [torch.randn(num_rows, columns, **options) for _, columns in self.shapes]
        self.y = [torch.zeros(num_rows, rows, **options) for rows, _ in self.shapes]

    @property
    def num_bytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights)

    def run(self, added: Added | None) -> None:
        """One step."""
        for index, (x, y, weight) in enumerate(zip(self.x, self.y, self.weights, strict=True)):
            torch.mm(x, weight.T, out=y)
            if added is not None:
                added(y, x, index)


def measure(ops: Ops, clock: Clock, scale: Scale, bandwidth: float) -> Iterator[Measurement]:
    """Every column; bandwidth: of a copy, bytes a second."""
    stack = Stack(scale, scale.step_rows, clock.device)
    repeats = scale.model_layers / scale.num_layers

    def timed(column: str, tasks: int, added: Added | None, extra_bytes: int) -> Measurement:
        seconds = clock.seconds([partial(stack.run, added)])
        bound = (stack.num_bytes + extra_bytes) / bandwidth
        return {
            "kind": "step",
            "column": column,
            "rows": scale.step_rows,
            "tasks": tasks,
            "bytes": (stack.num_bytes + extra_bytes) * repeats,
            "seconds": {name: value * repeats for name, value in seconds.items()},
            "bound_over_time": bound / seconds["p50"],
        }

    yield timed("base", 0, None, 0)
    # The captured graph as it is, in a step in which no row has a task.
    idle = [workload.random_slots("int4", 1, shape, clock.device) for shape in stack.shapes]
    nothing = Routes.allocate(scale.step_rows, 8, 2 * scale.step_rows, 1, clock.device)
    yield timed("idle bank", 0, partial(_separable, ops, idle, nothing), 0)
    for num_tasks in scale.task_counts:
        routes = workload.routes(
            workload.spread_rows(scale.step_rows, num_tasks, 2), range(num_tasks), clock.device
        )
        for scheme in workload.SCHEMES:
            slots = [
                workload.random_slots(scheme, num_tasks, shape, clock.device)
                for shape in stack.shapes
            ]
            yield timed(scheme, num_tasks, partial(_separable, ops, slots, routes), _bytes(slots))
            del slots
        for rank in RANKS:
            factors = [
                workload.random_factors(rank, num_tasks, shape, clock.device)
                for shape in stack.shapes
            ]
            single = workload.routes(
                workload.spread_rows(scale.step_rows, num_tasks, 1), range(num_tasks), clock.device
            )
            added = partial(_lowrank, ops, factors, single)
            yield timed(f"lora-{rank}", num_tasks, added, sum(f.slot_bytes for f in factors))
        binary = _binary(stack, num_tasks, scale.step_rows, clock.device)
        yield timed("bitdelta's design", num_tasks, *binary)
        del binary
        yield _dense_models(clock, scale, num_tasks, bandwidth)


def mixes(ops: Ops, clock: Clock, scale: Scale) -> Iterator[Measurement]:
    """More and more mixes over the same tasks, in the largest of these batches."""
    num_rows, num_tasks = max(scale.mix_counts), min(8, max(scale.task_counts))
    stack = Stack(scale, num_rows, clock.device)
    slots = [workload.random_slots("int4", num_tasks, s, clock.device) for s in stack.shapes]
    every = [list(range(num_rows))] * num_tasks
    routes = workload.routes(every, range(num_tasks), clock.device)
    repeats = scale.model_layers / scale.num_layers
    for num_mixes in scale.mix_counts:
        mixed = torch.rand(num_tasks, num_mixes) - 0.5
        pairs = mixed[:, torch.arange(num_rows) % num_mixes].flatten()
        routes.coefficients.copy_(pairs.unsqueeze(0))
        seconds = clock.seconds([partial(stack.run, partial(_separable, ops, slots, routes))])
        yield {
            "kind": "mixes",
            "scheme": "int4",
            "rows": num_rows,
            "tasks": num_tasks,
            "mixes": num_mixes,
            "seconds": {name: value * repeats for name, value in seconds.items()},
        }


def _separable(
    ops: Ops, slots: Sequence[DeltaSlots], routes: Routes, y: Tensor, x: Tensor, index: int
) -> None:
    ops.add_products(y, x, slots[index], routes)


def _lowrank(
    ops: Ops, slots: Sequence[FactorSlots], routes: Routes, y: Tensor, x: Tensor, index: int
) -> None:
    ops.add_lowrank(y, x, slots[index], routes)


def _bytes(slots: Sequence[DeltaSlots]) -> int:
    """What all tasks' deltas and the vectors they share weigh."""
    own = sum(each.slot_bytes * each.num_slots for each in slots)
    return own + sum(each.shared.slot_bytes for each in slots if each.shared)


def _binary(stack: Stack, num_tasks: int, num_rows: int, device: torch.device) -> tuple[Added, int]:
    """BitDelta's design over the stack, and the bytes of each task's bits."""
    words = [
        torch.randint(
            -(1 << 31), 1 << 31, (num_tasks, columns // 32, rows), device=device, dtype=torch.int32
        )
        for rows, columns in stack.shapes
    ]
    tasks = torch.arange(num_rows, device=device, dtype=torch.int32) % num_tasks
    scales = torch.full((num_tasks,), 1e-4, device=device)

    def added(y: Tensor, x: Tensor, index: int) -> None:
        add_binary(y, x, words[index], tasks, scales)

    return added, sum(each.nbytes for each in words)


def _dense_models(clock: Clock, scale: Scale, num_tasks: int, bandwidth: float) -> Measurement:
    """As many whole models as there are tasks, each with its part of the rows."""
    counts = [len(rows) for rows in workload.spread_rows(scale.step_rows, num_tasks, 1)]
    stacks = [Stack(scale, count, clock.device) for count in counts if count]
    repeats = scale.model_layers / scale.num_layers

    def step() -> None:
        for stack in stacks:
            stack.run(None)

    seconds = clock.seconds([step])
    num_bytes = sum(stack.num_bytes for stack in stacks)
    return {
        "kind": "step",
        "column": "dense models",
        "rows": scale.step_rows,
        "tasks": num_tasks,
        "bytes": num_bytes * repeats,
        "seconds": {name: value * repeats for name, value in seconds.items()},
        "bound_over_time": num_bytes / bandwidth / seconds["p50"],
    }
