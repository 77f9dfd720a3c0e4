"""Tiny model and adapter directories."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

EMBEDDING = "model.embed_tokens.weight"
HEAD = "lm_head.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"
DOWN = "model.layers.1.mlp.down_proj.weight"
NORM = "model.norm.weight"
CONFIG = {
    "model_type": "llama",
    "hidden_size": 20,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}


def make_weights(seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Random weights of a two-layer model with ragged widths."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {EMBEDDING: (12, 20), QUERY: (20, 20), DOWN: (20, 36), NORM: (20,)}
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()
    }


def tuned(weights: Mapping[str, Tensor], seed: int = 1, size: float = 0.05) -> dict[str, Tensor]:
    """Weights moved at random, rounded to their own dtype."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (tensor.float() + size * torch.randn(tensor.shape, generator=generator)).to(
            tensor.dtype
        )
        for name, tensor in weights.items()
    }


def save_model(directory: Path, weights: Mapping[str, Tensor], **config: Any) -> Path:
    """Write a model directory with CONFIG, overridden by `config`."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file(dict(weights), directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def save_sharded(directory: Path, shards: list[Mapping[str, Tensor]], **config: Any) -> Path:
    """Write a model directory with one file per mapping and an index."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **config}))
    locations = {}
    for number, weights in enumerate(shards):
        file = f"model-{number}.safetensors"
        save_file(dict(weights), directory / file)
        locations.update(dict.fromkeys(weights, file))
    index = json.dumps({"weight_map": locations})
    (directory / "model.safetensors.index.json").write_text(index)
    return directory


def make_factors(seed: int = 3, rank: int = 2) -> dict[str, Tensor]:
    """LoRA factors of QUERY, under the names PEFT gives them."""
    generator = torch.Generator().manual_seed(seed)
    module = f"base_model.model.{QUERY.removesuffix('.weight')}"
    return {
        f"{module}.lora_A.weight": torch.randn((rank, 20), generator=generator),
        f"{module}.lora_B.weight": torch.randn((20, rank), generator=generator),
    }


def save_adapter(directory: Path, factors: Mapping[str, Tensor], **config: Any) -> Path:
    """Write a PEFT adapter directory of rank 2 and alpha 4, overridden by `config`."""
    directory.mkdir(parents=True)
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", **config}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    save_file(dict(factors), directory / "adapter_model.safetensors")
    return directory
