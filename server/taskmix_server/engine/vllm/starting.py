"""What a worker decides once, from its settings and its machine."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from taskmix_composer.kernels.native import library
from taskmix_server.engine.config import DELTA_CACHE_BYTES, KERNELS
from taskmix_server.engine.vllm.costs import NEVER_MERGE, Costs, known_costs
from taskmix_server.engine.vllm.merged import mergeable
from taskmix_server.engine.vllm.sites import Site
from taskmix_server.errors import FailedPreconditionError

logger = logging.getLogger(__name__)


def has_kernel(settings: Mapping[str, Any], device: torch.device) -> bool:
    """Whether the compiled kernel multiplies deltas; else they are multiplied in dense forms."""
    kernel = settings.get("kernel", "auto")
    if kernel not in KERNELS:
        raise FailedPreconditionError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if kernel == "torch" or (device.type != "cpu" and kernel == "auto"):
        return False
    if device.type == "cpu" and library.available():
        return True
    missing = (
        "the compiled kernel is for CPUs with AVX2, and is built when taskmix is installed where "
        "there is a C compiler (`cc`)"
    )
    if kernel == "native":
        raise FailedPreconditionError(f"--kernel native was asked for, but {missing}")
    logger.warning("deltas are multiplied by PyTorch, which is slow: %s", missing)
    return False


def costs_of(
    sites: Sequence[Site], dtype: torch.dtype, device: torch.device, settings: Mapping[str, Any]
) -> Costs:
    """What merging and adding cost here; measured now unless they were before."""
    linears = mergeable(sites)
    if device.type != "cpu" or not linears:
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
