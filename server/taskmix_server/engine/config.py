"""What an operator chooses about the engine; free of the engine's own imports."""

from dataclasses import dataclass
from pathlib import Path

CONFIG_KEY = "taskmix"
"""The key of vLLM's `additional_config` under which taskmix finds its own settings."""

DELTA_CACHE_BYTES = 8 * 2**30
"""What dense forms of coded deltas may take where nothing else was chosen."""

KERNELS = ("auto", "native", "torch", "triton")
"""What multiplies coded deltas: the compiled kernel, PyTorch on dense forms, or Triton's kernels.

`auto` is the compiled kernel on CPU and PyTorch on GPU, where Triton's have not been measured yet.
"""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an operator chooses about the engine. None leaves vLLM's default.

    device: "auto", "cpu" or "cuda". dtype: "auto" is the base checkpoint's own dtype, float32
    included. served_model_name: None is the base directory's name. digest_cache and cost_cache:
    files that spare hashing the base and measuring the machine at every start.
    delta_cache_bytes: for dense forms of deltas that no kernel reads as they are coded, which are
    decoded at each use if they do not fit, and for the merged weights of mixes that fill batches.
    kernel: one of `KERNELS`. device_slots: how many tasks can be loaded at once under `triton`,
    None for one more than the bank has; their room is taken at the start.
    """

    base: Path
    bank: Path
    device: str = "auto"
    dtype: str = "auto"
    max_model_len: int | None = None
    max_num_seqs: int = 64
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    kv_cache_memory_bytes: int | None = None
    served_model_name: str | None = None
    seed: int = 0
    digest_cache: Path | None = None
    cost_cache: Path | None = None
    kernel: str = "auto"
    device_slots: int | None = None
    delta_cache_bytes: int = DELTA_CACHE_BYTES

    @property
    def model_name(self) -> str:
        """What callers name to get the base alone."""
        return self.served_model_name or self.base.resolve().name
