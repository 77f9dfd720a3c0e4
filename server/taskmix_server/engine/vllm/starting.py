"""What a worker decides once, from its settings and its machine."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskmix_composer.bank import Bank
from taskmix_composer.kernels import ops
from taskmix_composer.kernels.device import operands
from taskmix_composer.kernels.native import library
from taskmix_server.engine.config import DELTA_CACHE_BYTES, KERNELS
from taskmix_server.engine.vllm.costs import NEVER_MERGE, Costs, known_costs
from taskmix_server.engine.vllm.deltas import TensorTable
from taskmix_server.engine.vllm.merged import mergeable
from taskmix_server.engine.vllm.sites import Site
from taskmix_server.engine.vllm.tables import SlotTables
from taskmix_server.errors import FailedPreconditionError

logger = logging.getLogger(__name__)


def kernel_of(settings: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> str:
    """What multiplies deltas: `native`, `torch` or `triton`."""
    kernel: str = settings.get("kernel", "auto")
    if kernel not in KERNELS:
        raise FailedPreconditionError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if kernel == "triton":
        _check_triton(dtype, device)
    if kernel in ("torch", "triton") or (device.type != "cpu" and kernel == "auto"):
        return "torch" if kernel == "auto" else kernel
    if device.type == "cpu" and library.available():
        return "native"
    missing = (
        "the compiled kernel is for CPUs with AVX2, and is built when taskmix is installed where "
        "there is a C compiler (`cc`)"
    )
    if kernel == "native":
        raise FailedPreconditionError(f"--kernel native was asked for, but {missing}")
    logger.warning("deltas are multiplied by PyTorch, which is slow: %s", missing)
    return "torch"


def _check_triton(dtype: torch.dtype, device: torch.device) -> None:
    """Raise FailedPreconditionError where Triton's kernels cannot run."""
    if dtype not in operands.DTYPES:
        raise FailedPreconditionError(
            f"--kernel triton computes in bfloat16 or float16, not {dtype}; give --dtype bfloat16"
        )
    try:
        ops.check_device("triton", device)
    except ops.KernelUnavailableError as error:
        raise FailedPreconditionError(f"--kernel triton was asked for, but {error}") from error


def tables_of(
    bank: Bank, sites: Sequence[Site], device: torch.device, settings: Mapping[str, Any]
) -> SlotTables:
    """Empty tables for what the bank's tasks are coded in.

    By default there is room for all of them, and for new content of one while it is replaced.
    """
    num_slots = settings.get("device_slots", len(bank.entries) + 1)
    if not isinstance(num_slots, int) or num_slots < 1:
        raise FailedPreconditionError(f"device_slots must be 1 or more, got {num_slots!r}")
    columns = TensorTable.of(bank.base.tensors).columns
    tables = SlotTables(num_slots, columns, device)
    tables.reserve(bank, sites)
    return tables


def costs_of(
    sites: Sequence[Site], dtype: torch.dtype, device: torch.device, settings: Mapping[str, Any]
) -> Costs:
    """What merging and adding cost here; measured now unless they were before."""
    linears = mergeable(sites)
    if device.type != "cpu" or settings.get("kernel") == "triton" or not linears:
        return NEVER_MERGE
    method: Any = linears[0].module.quant_method

    def install(weight: Tensor) -> None:
        module = nn.Module()
        module.weight = nn.Parameter(weight, requires_grad=False)
        method.process_weights_after_loading(module)

    path = settings.get("cost_cache")
    return known_costs(Path(path) if path else None, dtype, install)


def cache_bytes(settings: Mapping[str, Any]) -> int:
    """The budget for dense forms and merged weights."""
    given = settings.get("delta_cache_memory", DELTA_CACHE_BYTES)
    if not isinstance(given, int) or given < 0:
        raise FailedPreconditionError(
            f"delta_cache_memory must be a number of bytes, 0 or more, got {given!r}"
        )
    return given
