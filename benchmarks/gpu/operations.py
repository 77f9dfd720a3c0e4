"""Each operation by itself: its time, the bytes it has to move, and how near it comes to a copy."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch

from benchmarks.gpu import workload
from benchmarks.gpu.timing import Clock
from benchmarks.gpu.workload import Scale
from taskmix_composer.kernels.device.blends import Blends
from taskmix_composer.kernels.device.factors import FactorSlots
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.ops import Ops

Measurement = Mapping[str, object]
RANKS = (16, 64)
MAX_PAIRS = 2048


def measure(ops: Ops, clock: Clock, scale: Scale, bandwidth: float) -> Iterator[Measurement]:
    """bandwidth: of a copy, bytes a second."""
    name, shape = next(iter(scale.linears.items()))
    for scheme in workload.SCHEMES:
        for found in products(ops, clock, scale, scheme, shape):
            yield rated(found, bandwidth, linear=name, scheme=scheme)
        for found in mixes(ops, clock, scale, scheme, shape):
            yield rated(found, bandwidth, linear=name, scheme=scheme)
    for rank in RANKS:
        for found in lowrank(ops, clock, scale, rank, shape):
            yield rated(found, bandwidth, linear=name, scheme=f"rank{rank}")


def rated(found: Measurement, bandwidth: float, **labels: str) -> Measurement:
    """A measurement with what part of a copy's bandwidth its bytes were moved at."""
    rate = found["bytes"] / found["seconds"]["p50"]
    return {
        "kind": "operation",
        **labels,
        **found,
        "bytes_per_s": rate,
        "of_copy": rate / bandwidth,
    }


def products(
    ops: Ops, clock: Clock, scale: Scale, scheme: str, shape: tuple[int, int]
) -> Iterator[Measurement]:
    """Separable products and lookups: every batch and number of tasks with two tasks a row."""
    slots = cold_slots(clock, scale, scheme, shape)
    for num_tasks in scale.task_counts:
        for num_rows in scale.batch_sizes:
            tasks = workload.spread_rows(num_rows, num_tasks, 2)
            num_pairs = sum(map(len, tasks))
            if num_pairs > MAX_PAIRS:
                continue
            x = torch.randn(num_rows, shape[1], device=clock.device, dtype=torch.bfloat16)
            y = torch.zeros(num_rows, shape[0], device=clock.device, dtype=torch.bfloat16)
            calls = [
                partial(ops.add_products, y, x, slots, workload.routes(tasks, turn, clock.device))
                for turn in turns(slots, num_tasks)
            ]
            yield {
                "operation": "products",
                "rows": num_rows,
                "tasks": num_tasks,
                "pairs": num_pairs,
                "bytes": num_tasks * slots.slot_bytes + shared_bytes(slots) + moved(x, y),
                "seconds": clock.seconds(calls),
            }


def mixes(
    ops: Ops, clock: Clock, scale: Scale, scheme: str, shape: tuple[int, int]
) -> Iterator[Measurement]:
    """Composed products, written weights and lookups of one mix of several tasks."""
    slots = cold_slots(clock, scale, scheme, shape)
    num_rows = max(scale.batch_sizes)
    x = torch.randn(num_rows, shape[1], device=clock.device, dtype=torch.bfloat16)
    y = torch.zeros(num_rows, shape[0], device=clock.device, dtype=torch.bfloat16)
    weights = torch.randn(*shape, device=clock.device, dtype=torch.bfloat16)
    copies = [weights.clone() for _ in range(len(turns(slots, 1)))]
    ids = torch.randint(0, shape[0], (num_rows,), device=clock.device)
    for num_tasks in scale.task_counts:
        packed = num_tasks * slots.slot_bytes + shared_bytes(slots)
        groups = [one_group(num_rows, turn, clock.device) for turn in turns(slots, num_tasks)]
        every = workload.routes([range(num_rows)] * num_tasks, range(num_tasks), clock.device)
        calls: dict[str, tuple[int, list[Callable[[], None]]]] = {
            "composed": (
                packed + moved(x, y),
                [partial(ops.add_composed, y, x, slots, group) for group in groups],
            ),
            "weights": (
                packed + 2 * weights.nbytes,
                [
                    partial(ops.merge_weights, copy, slots, group)
                    for copy, group in zip(copies, groups, strict=False)
                ],
            ),
            "weights-out": (
                packed + 2 * weights.nbytes,
                [
                    partial(ops.add_weights, copy, weights, slots, group)
                    for copy, group in zip(copies, groups, strict=False)
                ],
            ),
            "lookups": (
                (num_tasks * slots.slot_bytes + shared_bytes(slots)) * num_rows // shape[0]
                + moved(x, x),
                [partial(ops.add_lookups, x, ids, slots, every)],
            ),
        }
        for operation, (num_bytes, each) in calls.items():
            yield {
                "operation": operation,
                "rows": num_rows,
                "tasks": num_tasks,
                "bytes": num_bytes,
                "seconds": clock.seconds(each),
            }


def lowrank(
    ops: Ops, clock: Clock, scale: Scale, rank: int, shape: tuple[int, int]
) -> Iterator[Measurement]:
    """Low-rank products with one task a row."""
    for num_tasks in scale.task_counts:
        slots = workload.random_factors(rank, num_tasks, shape, clock.device)
        for num_rows in scale.batch_sizes:
            tasks = workload.spread_rows(num_rows, num_tasks, 1)
            x = torch.randn(num_rows, shape[1], device=clock.device, dtype=torch.bfloat16)
            y = torch.zeros(num_rows, shape[0], device=clock.device, dtype=torch.bfloat16)
            route = workload.routes(tasks, range(num_tasks), clock.device)
            yield {
                "operation": "lowrank",
                "rows": num_rows,
                "tasks": num_tasks,
                "bytes": num_tasks * slots.slot_bytes + moved(x, y),
                "seconds": clock.seconds([partial(ops.add_lowrank, y, x, slots, route)]),
            }


def cold_slots(clock: Clock, scale: Scale, scheme: str, shape: tuple[int, int]) -> DeltaSlots:
    """As many slots as calls need to go round without meeting a cached one."""
    one = workload.random_slots(scheme, 1, shape, clock.device)
    num_slots = max(*scale.task_counts, -(-scale.cold_bytes // one.slot_bytes))
    return workload.random_slots(scheme, num_slots, shape, clock.device)


def turns(slots: DeltaSlots | FactorSlots, num_tasks: int) -> list[range]:
    """Disjoint slots for each of several calls, at most 32."""
    count = max(1, min(32, len(slots.is_loaded) // num_tasks))
    return [range(turn * num_tasks, (turn + 1) * num_tasks) for turn in range(count)]


def shared_bytes(slots: DeltaSlots) -> int:
    return slots.shared.slot_bytes if slots.shared else 0


def moved(x: torch.Tensor, y: torch.Tensor) -> int:
    """Bytes of reading x, and of reading and writing y."""
    return x.nbytes + 2 * y.nbytes


def one_group(num_rows: int, slots: range, device: torch.device) -> Blends:
    """All rows with one mix of these slots."""
    blends = Blends.allocate(num_rows, 1, len(slots), 1, device)
    blends.fill([range(num_rows)], [slots], torch.rand(1, len(slots)) - 0.5)
    return blends
