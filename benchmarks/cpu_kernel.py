"""One decode step's deltas of SmolLM2-135M on CPU: time, bytes, and the share of memory speed.

    python -m benchmarks.cpu_kernel

Eight tasks, 32 rows; a row uses one task or two. Every linear of the 30 layers and the head has
deltas of its own for every task, as in a server, so that nothing is found in a cache. Contents are
repeated: only bytes matter.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import click
import torch
from torch import Tensor

from benchmarks.record import append, spread
from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.kernels import reference
from taskmix_composer.kernels.native import library
from taskmix_composer.kernels.native.memory import Arena
from taskmix_composer.kernels.native.packing import PackedDelta, pack
from taskmix_composer.kernels.products import Pairs, Part, PartTable, add_products
from taskmix_composer.kernels.reference import ReferencePart
from taskmix_composer.quant import encode, masked

NUM_TASKS = 8
NUM_ROWS = 32
NUM_LAYERS = 30
HEAD = ((49152,), 576)
SITES = [((576, 192, 192), 576), ((576,), 576), ((1536, 1536), 576), ((576,), 1536)]
"""The sizes of a linear's segments, and its inputs."""
SCHEMES = ("int4", "int2", "sign", "tall", "sparse")
NUM_PAIRS = (64, 48)
NUM_STEPS = 12
READ_BYTES = 1 << 29
# Inputs in int8 are off by about one part in 200 of a product.
MAX_RELATIVE_ERROR = 0.02


@dataclass(frozen=True, slots=True)
class Measured:
    """A step's deltas under a scheme: milliseconds, bytes read, and bytes per second."""

    scheme: str
    num_pairs: int
    num_threads: int
    milliseconds: dict[str, float]
    megabytes: float
    gb_per_s: float
    share_of_read: float


@click.command()
@click.option("--scheme", "schemes", multiple=True, default=SCHEMES, show_default=True)
@click.option("--record/--no-record", default=True, help="Append to results/cpu_kernel.jsonl.")
def main(schemes: Sequence[str], record: bool) -> None:
    """Measure, print, and append to results/cpu_kernel.jsonl."""
    speeds = {threads: read_speed(threads) for threads in (1, 2)}
    for threads, speed in speeds.items():
        click.echo(f"reading, {threads} threads: {speed:.1f} GB/s ({library.name()})")
    for scheme in schemes:
        for found in measure(scheme, speeds):
            times = found.milliseconds
            click.echo(
                f"{scheme:8} {found.num_pairs} pairs, {found.num_threads} threads: "
                f"{times['p20']:6.1f} {times['p50']:6.1f} {times['p80']:6.1f} ms, "
                f"{found.megabytes:.0f} MB, {found.gb_per_s:5.1f} GB/s, "
                f"{found.share_of_read:4.0%} of reading"
            )
            if record:
                append("cpu_kernel", {name: getattr(found, name) for name in found.__slots__})


def measure(scheme: str, speeds: dict[int, float]) -> Iterator[Measured]:
    """Every batch and number of threads under a scheme."""
    tables = step_tables(scheme)
    num_bytes = sum(unique_bytes(table) for table in tables)
    inputs = {width: torch.randn(NUM_ROWS, width).bfloat16() for width in (576, 1536)}
    outputs = [torch.zeros(NUM_ROWS, each.num_outputs, dtype=torch.bfloat16) for each in tables]
    for num_pairs in NUM_PAIRS:
        pairs = step_pairs(num_pairs)
        check(scheme, pairs)

        def step(pairs: Pairs = pairs) -> None:
            for table, y in zip(tables, outputs, strict=True):
                add_products(y, inputs[table.num_inputs], table, pairs)

        for num_threads in speeds:
            torch.set_num_threads(num_threads)
            times = spread([1e3 * seconds for seconds in repeated(step, NUM_STEPS)])
            speed = num_bytes / times["p50"] / 1e6
            yield Measured(
                scheme,
                num_pairs,
                num_threads,
                {name: round(value, 2) for name, value in times.items()},
                round(num_bytes / 1e6),
                round(speed, 1),
                round(speed / speeds[num_threads], 3),
            )


def step_tables(scheme: str) -> list[PartTable]:
    """A table for each linear and the head, in the order of a step."""
    arenas = [Arena() for _ in range(NUM_TASKS + 1)]
    originals: dict[tuple[int, int], list[PackedDelta]] = {}
    sites = SITES * NUM_LAYERS + [HEAD]
    tables = []
    for sizes, inputs in sites:
        parts, start = [], 0
        for size in sizes:
            if (size, inputs) not in originals:
                originals[size, inputs] = packed_tasks(scheme, (size, inputs))
            copies = copied(originals[size, inputs], arenas)
            parts += [Part(delta, task, start, 0) for task, delta in enumerate(copies)]
            start += size
        tables.append(PartTable.of(parts, start, inputs))
    return tables


def coded_tasks(scheme: str, shape: tuple[int, int]) -> list[EncodedDelta]:
    """A delta for each task; under `tall` they are masks over one."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(shape, generator=generator) * 1e-3
    if scheme != "tall":
        return [encode(matrix, Scheme.parse(scheme))] * NUM_TASKS
    shared = encode(matrix, Scheme.parse("int4"))
    kept = torch.rand(shape, generator=generator) < 0.3
    return [masked.encode(kept, shared, matrix, 1.0)] * NUM_TASKS


def packed_tasks(scheme: str, shape: tuple[int, int]) -> list[PackedDelta]:
    """The same, packed."""
    coded = coded_tasks(scheme, shape)
    shared = pack(coded[0].shared) if coded[0].shared else ()
    packed = [pack(delta, shared or ()) for delta in coded]
    return [part for parts in packed for part in parts or ()]


def copied(deltas: Sequence[PackedDelta], arenas: Sequence[Arena]) -> list[PackedDelta]:
    """Deltas in memory of their own; those that share strips go on sharing."""

    def copy(values: Tensor, arena: Arena) -> Tensor:
        return arena.empty(values.numel()).view(values.shape).copy_(values)

    if deltas[0].mask is None:
        return [
            replace(delta, strips=replace(delta.strips, data=copy(delta.strips.data, arena)))
            for delta, arena in zip(deltas, arenas, strict=False)
        ]
    strips = replace(deltas[0].strips, data=copy(deltas[0].strips.data, arenas[-1]))
    return [
        replace(delta, strips=strips, mask=copy(delta.mask, arena))
        for delta, arena in zip(deltas, arenas, strict=False)
        if delta.mask is not None
    ]


def unique_bytes(table: PartTable) -> int:
    """Bytes that a call must read: strips once each, and masks."""
    strips = {id(part.delta.strips): part.delta.strips.data.nbytes for part in table.parts}
    masks = [part.delta.mask for part in table.parts if part.delta.mask is not None]
    return sum(strips.values()) + sum(mask.nbytes for mask in masks)


def step_pairs(num_pairs: int) -> Pairs:
    """As many rows for each task; no row has a task twice."""
    per_task = num_pairs // NUM_TASKS
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randperm(NUM_ROWS, generator=generator)[:per_task] for _ in range(NUM_TASKS)]
    starts = torch.arange(0, num_pairs + 1, per_task, dtype=torch.int32)
    return Pairs(starts, torch.cat(rows).to(torch.int32), torch.rand(1, num_pairs))


def check(scheme: str, pairs: Pairs) -> None:
    """Refuse to time a kernel that is wrong."""
    shape = (192, 576)
    coded, packed = coded_tasks(scheme, shape), packed_tasks(scheme, shape)
    table = PartTable.of([Part(delta, task, 0, 0) for task, delta in enumerate(packed)], *shape)
    parts = [ReferencePart(delta, task, 0, 0) for task, delta in enumerate(coded)]
    x, y = torch.randn(NUM_ROWS, shape[1]).bfloat16(), torch.zeros(NUM_ROWS, shape[0])
    wanted = reference.add_products(y, x, parts, pairs.starts, pairs.rows, pairs.coefficients)
    add_products(y, x, table, pairs)
    error = float((y - wanted).norm() / wanted.norm())
    if error > MAX_RELATIVE_ERROR:
        raise click.ClickException(f"{scheme} is off by {error:.3f}: nothing was measured")


def read_speed(num_threads: int) -> float:
    """What summing up a large tensor reaches, GB/s."""
    torch.set_num_threads(num_threads)
    values = torch.ones(READ_BYTES // 8, dtype=torch.int64)
    return READ_BYTES / min(repeated(values.sum, NUM_STEPS)) / 1e9


def repeated(call: Callable[[], object], times: int) -> list[float]:
    """Seconds of each of so many calls, after one that is not counted."""
    found = []
    for _ in range(times + 1):
        started_s = time.perf_counter()
        call()
        found.append(time.perf_counter() - started_s)
    return found[1:]


if __name__ == "__main__":
    main()
