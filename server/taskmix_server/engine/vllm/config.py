"""vLLM's own settings for an engine that mixes."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.platforms import current_platform
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser

from taskmix_composer.checkpoint import Checkpoint
from taskmix_server.engine.config import CONFIG_KEY, EngineConfig
from taskmix_server.engine.vllm import compat
from taskmix_server.errors import FailedPreconditionError, UnsupportedModelError

WORKER_EXTENSION = "taskmix_server.engine.vllm.worker.MixWorker"
CPU_KV_CACHE_BYTES = 2 * 2**30


def engine_options(config: EngineConfig) -> dict[str, Any]:
    """Keyword arguments of vLLM's `EngineArgs`.

    As many LoRA slots as sequences: a slot is a row of coefficients here, and with fewer a mix
    could wait for ever behind requests that share a held slot.
    """
    _check_device(config.device)
    kv_cache_bytes = config.kv_cache_memory_bytes
    if kv_cache_bytes is None and current_platform.is_cpu():
        kv_cache_bytes = CPU_KV_CACHE_BYTES  # vLLM would take most of the machine's memory
    optional = {
        "max_model_len": config.max_model_len,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "block_size": config.block_size,
        "kv_cache_memory_bytes": kv_cache_bytes,
    }
    return {
        "model": str(config.base),
        "dtype": checkpoint_dtype(config.base) if config.dtype == "auto" else config.dtype,
        "served_model_name": [config.model_name],
        "max_num_seqs": config.max_num_seqs,
        "enforce_eager": True,  # row lists vary in shape from step to step
        "enable_lora": True,
        "max_loras": config.max_num_seqs,
        "max_cpu_loras": config.max_num_seqs,
        "max_lora_rank": 1,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "seed": config.seed,
        # By its name, vLLM would have two processes on CPU: it sets OpenMP up for a worker of the
        # scheduler's. `clients.start` does that for one.
        "distributed_executor_backend": compat.UniProcExecutor,
        "worker_extension_cls": WORKER_EXTENSION,
        "additional_config": {CONFIG_KEY: _worker_settings(config)},
        **{name: value for name, value in optional.items() if value is not None},
    }


def server_config(config: EngineConfig) -> tuple[Namespace, Any]:
    """The arguments of `vllm serve`, which its HTTP app reads, and the VllmConfig made of them."""
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    for name, value in engine_options(config).items():
        setattr(arguments, name, value)
    arguments.disable_fastapi_docs = True
    engine_arguments = AsyncEngineArgs.from_cli_args(arguments)
    try:
        vllm_config = engine_arguments.create_engine_config(UsageContext.OPENAI_API_SERVER)
    except ValueError as error:
        raise FailedPreconditionError(f"vLLM cannot serve {config.base} so: {error}") from error
    compat.check()
    check_config(vllm_config)
    return arguments, vllm_config


def _worker_settings(config: EngineConfig) -> dict[str, str | int]:
    settings: dict[str, str | int] = {
        "bank": str(config.bank),
        "delta_cache_memory": config.delta_cache_bytes,
        "kernel": config.kernel,
    }
    files = {"digest_cache": config.digest_cache, "cost_cache": config.cost_cache}
    if config.device_slots is not None:
        settings["device_slots"] = config.device_slots
    return settings | {name: str(path) for name, path in files.items() if path is not None}


def checkpoint_dtype(base: Path) -> str:
    """The dtype that most parameters of a checkpoint are stored in, as vLLM names it."""
    counts: dict[str, int] = {}
    for info in Checkpoint.open(base).tensors.values():
        name = str(info.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + info.num_parameters
    return max(counts, key=lambda name: counts[name])


def _check_device(device: str) -> None:
    found = current_platform.device_type
    if device not in ("auto", found):
        raise FailedPreconditionError(
            f"--device {device} was asked for, but the installed vLLM serves on {found}; install "
            "taskmix[server] for CUDA or taskmix[server-cpu] for CPU"
        )


def check_config(vllm_config: Any) -> None:
    """Raise UnsupportedModelError for what deltas cannot be added to."""
    if vllm_config.model_config.use_mla:
        raise UnsupportedModelError(
            "multi-head latent attention folds kv_b_proj into the attention kernel, past the "
            "place where deltas are added; taskmix serves dense Llama- and Qwen-style models"
        )
    if not vllm_config.model_config.enforce_eager:
        raise UnsupportedModelError(
            "captured graphs would replay without the deltas; start with --enforce-eager"
        )
    if vllm_config.speculative_config is not None:
        raise UnsupportedModelError(
            "speculative decoding samples rows that a changed head cannot be matched to; "
            "start without --speculative-config"
        )
    parallel = vllm_config.parallel_config
    if parallel.tensor_parallel_size > 1 or parallel.pipeline_parallel_size > 1:
        raise UnsupportedModelError(
            "taskmix serves from one device; start with tensor and pipeline parallel size 1"
        )
