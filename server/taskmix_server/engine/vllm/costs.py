"""What adding deltas and merging them take on this machine, measured once and remembered."""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from taskmix_composer.config import Scheme
from taskmix_composer.kernels.native import library
from taskmix_composer.kernels.native.packing import pack
from taskmix_composer.kernels.products import Pairs, Part, PartTable, add_products, add_weights
from taskmix_composer.quant import encode

logger = logging.getLogger(__name__)

_SIZE = 1024
_NUM_ROWS = 32
_NUM_REPEATS = 5


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds per weight of a matrix.

    read: to take in one task's delta. row: to multiply it with one row. decode: to add one task's
    delta to merged weights. install: to make merged weights ready for multiplying.
    """

    read: float
    row: float
    decode: float
    install: float

    def adding_s(self, num_weights: int, num_tasks: int, num_rows: int) -> float:
        """Adding the deltas of `num_tasks` to every one of `num_rows` in one step."""
        return num_weights * num_tasks * (self.read + num_rows * self.row)

    def merging_s(self, num_weights: int, num_tasks: int) -> float:
        """Merging as many tasks."""
        return num_weights * (num_tasks * self.decode + self.install)


NEVER_MERGE = Costs(0.0, 0.0, math.inf, math.inf)
"""Of a device where nothing was measured."""

Install = Callable[[Tensor], None]
"""Makes a weight [outputs, inputs] ready for the engine's own multiplication."""


def known_costs(path: Path | None, dtype: torch.dtype, install: Install) -> Costs:
    """The costs of this machine from a file of them, measured and added to it if they are new.

    A damaged file counts as empty.
    """
    key = machine(dtype)
    known = _read(path) if path else {}
    if key not in known:
        known[key] = measure(dtype, install)
        logger.info("measured on %s: %s", key, known[key])
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({name: asdict(costs) for name, costs in known.items()}))
    return known[key]


def machine(dtype: torch.dtype) -> str:
    """What costs depend on beside the code."""
    return f"{_processor()}, {library.name()}, {torch.get_num_threads()} threads, {dtype}"


def measure(dtype: torch.dtype, install: Install) -> Costs:
    """Time one int4 matrix, which takes a fraction of a second."""
    num_weights = _SIZE * _SIZE
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(_SIZE, _SIZE, generator=generator)
    one, many = (_adding(matrix, num_rows, dtype) for num_rows in (1, _NUM_ROWS))
    one_s, many_s = _best_s(one), _best_s(many)
    row = max(0.0, many_s - one_s) / (_NUM_ROWS - 1) / num_weights
    return Costs(
        read=max(0.0, one_s / num_weights - row),
        row=row,
        decode=_best_s(_decoding(matrix)) / num_weights,
        install=_best_s(lambda: install(matrix.clone().to(dtype))) / num_weights,
    )


def _adding(matrix: Tensor, num_rows: int, dtype: torch.dtype) -> Callable[[], object]:
    x = torch.ones(num_rows, _SIZE, dtype=dtype)
    if not library.available():
        weight = matrix.to(dtype)
        return lambda: functional.linear(x, weight)
    table = _packed(matrix)
    starts = torch.tensor([0, num_rows], dtype=torch.int32)
    rows = torch.arange(num_rows, dtype=torch.int32)
    pairs = Pairs(starts, rows, torch.ones(1, num_rows))
    out = torch.zeros(num_rows, _SIZE, dtype=dtype)
    return lambda: add_products(out, x, table, pairs)


def _decoding(matrix: Tensor) -> Callable[[], object]:
    total = matrix.clone()
    if not library.available():
        return lambda: total.add_(matrix, alpha=0.5)
    table = _packed(matrix)
    return lambda: add_weights(total, table, torch.ones(1))


def _packed(matrix: Tensor) -> PartTable:
    packed = pack(encode(matrix, Scheme.parse("int4")))
    assert packed is not None
    return PartTable.of([Part(part, 0, 0, 0) for part in packed], _SIZE, _SIZE)


def _best_s(call: Callable[[], object]) -> float:
    found = []
    for _ in range(_NUM_REPEATS):
        started_s = time.perf_counter()
        call()
        found.append(time.perf_counter() - started_s)
    return min(found)


def _read(path: Path) -> dict[str, Costs]:
    names = {item.name for item in fields(Costs)}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        return {key: Costs(**value) for key, value in known.items() if value.keys() == names}
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return {}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return "unknown processor"
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, "unknown processor")
