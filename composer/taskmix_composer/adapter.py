"""PEFT LoRA adapter directories."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from taskmix_composer.checkpoint import Checkpoint, open_tensor_file, read_json
from taskmix_composer.errors import CheckpointError
from taskmix_composer.tensorfile import TensorFile

ADAPTER_SCHEME = "lowrank"
"""The scheme of an entry that keeps an adapter's own factors."""
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_FACTORS = {".lora_A.weight": "a", ".lora_B.weight": "b"}
# Settings under which an adapter is more than B @ A added to the base's own weights.
_REFUSED_WHEN_SET = (
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "alora_invocation_tokens",
    "megatron_config",
)
# Initialisations that leave the base's weights as they were.
_PLAIN_INITS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """Low-rank deltas: for a base tensor [out, in], scaling * B [out, r] @ A [r, in]."""

    directory: Path
    scaling: float
    names: tuple[str, ...]
    files: Mapping[str, TensorFile]

    @classmethod
    def open(cls, directory: Path) -> "Adapter":
        """Read the adapter's settings and names, refusing by name what is not plain LoRA."""
        config = read_json(directory / CONFIG_FILE)
        _check_config(directory / CONFIG_FILE, config)
        if not (directory / WEIGHTS_FILE).exists() and any(directory.glob("*.bin")):
            raise CheckpointError(
                f"{directory} holds pickled adapter weights; save them as safetensors"
            )
        file = open_tensor_file(directory / WEIGHTS_FILE)
        names = _adapted_names(file)
        _check_shapes(file, names)
        scaling = _scaling(directory / CONFIG_FILE, config)
        return cls(directory, scaling, names, dict.fromkeys(file.spans, file))

    def read(self, name: str) -> tuple[Tensor, Tensor]:
        """A [r, in] and B [out, r] for a base tensor, in their stored dtype."""
        a, b = _factor_keys(name)
        return self.files[a].read(a), self.files[b].read(b)


def open_finetuned(directory: Path) -> Checkpoint | Adapter:
    """Open a fine-tuned model directory, or an adapter directory."""
    if (directory / CONFIG_FILE).exists():
        return Adapter.open(directory)
    return Checkpoint.open(directory)


def _factor_keys(name: str) -> tuple[str, str]:
    """The keys of A and B for a base tensor."""
    module = _PREFIX + name.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def _check_config(path: Path, config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{path}: peft_type is {kind}; only LORA adapters can be read")
    for key in _REFUSED_WHEN_SET:
        if config.get(key):
            raise CheckpointError(
                f"{path}: {key} is set, which is not supported; merge the adapter into its base "
                "and give the merged model"
            )
    if config.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: bias is {config['bias']!r}; only 'none' is supported")
    if config.get("init_lora_weights") not in _PLAIN_INITS:
        raise CheckpointError(
            f"{path}: init_lora_weights is {config['init_lora_weights']!r}, which changes the base "
            "itself; merge the adapter and give the merged model"
        )


def _scaling(path: Path, config: Mapping[str, Any]) -> float:
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, int | float):
        raise CheckpointError(f"{path}: r must be a positive integer and lora_alpha a number")
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    if not math.isfinite(scaling):
        raise CheckpointError(f"{path}: lora_alpha must be finite")
    return scaling


def _adapted_names(file: TensorFile) -> tuple[str, ...]:
    """Names of the base tensors the file has both factors for."""
    factors: dict[str, set[str]] = {}
    for key in file.spans:
        ending = next((ending for ending in _FACTORS if key.endswith(ending)), None)
        if ending is None or not key.startswith(_PREFIX):
            raise CheckpointError(
                f"{file.path}: {key} is not a LoRA factor of a linear layer, which is all that is "
                "supported; merge the adapter and give the merged model"
            )
        name = key.removeprefix(_PREFIX).removesuffix(ending) + ".weight"
        factors.setdefault(name, set()).add(_FACTORS[ending])
    for name, found in factors.items():
        if found != {"a", "b"}:
            raise CheckpointError(f"{file.path}: one of lora_A and lora_B is missing for {name}")
    return tuple(sorted(factors))


def _check_shapes(file: TensorFile, names: tuple[str, ...]) -> None:
    for name in names:
        a, b = (file.spans[key] for key in _factor_keys(name))
        is_pair = len(a.shape) == len(b.shape) == 2 and a.shape[0] == b.shape[1]
        if not is_pair or a.dtype != b.dtype:
            raise CheckpointError(
                f"{file.path}: the factors of {name} are {a.dtype} {a.shape} and {b.dtype} "
                f"{b.shape}; a linear layer needs [r, in] and [out, r] of one dtype"
            )
