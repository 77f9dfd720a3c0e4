"""Tiny random models: they start in seconds and have every kind of tensor."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

VOCABULARY = 320  # 256 bytes, special tokens, and rows that no text reaches
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class TinyModel:
    """The shape of a tiny model. head_dim is 32: vLLM's CPU attention takes nothing smaller."""

    family: str = "llama"
    tied: bool = True
    biased: bool = False
    seed: int = 0
    dtype: torch.dtype = torch.float32
    num_layers: int = 3


def make_base(directory: Path, shape: TinyModel) -> Path:
    """Write a random model with its tokenizer."""
    torch.manual_seed(shape.seed)
    model = AutoModelForCausalLM.from_config(_config(shape)).to(shape.dtype)
    generator = torch.Generator().manual_seed(shape.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.2 * noise)
            else:
                parameter.copy_(0.15 * noise)
    model.save_pretrained(directory)
    make_tokenizer().save_pretrained(directory)
    return directory


def make_finetune(
    base: Path, directory: Path, seed: int, *, scale: float = 0.03, only: str = ""
) -> Path:
    """Write a copy of `base` with noise on every tensor whose name contains `only`."""
    copy_without_weights(base, directory)
    weights = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(1000 + seed)
    for name, weight in weights.items():
        noise = torch.randn(weight.shape, generator=generator)
        if only in name:
            weights[name] = (weight.float() + scale * noise).to(weight.dtype)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def copy_without_weights(base: Path, directory: Path) -> None:
    """Write a checkpoint's configuration and tokenizer."""
    shutil.copytree(base, directory, ignore=shutil.ignore_patterns("*.safetensors"))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _config(shape: TinyModel) -> LlamaConfig | Qwen3Config:
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": 128,
        "intermediate_size": 224,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": shape.tied,
        "bos_token_id": None,
        "eos_token_id": 256,
        "attention_bias": shape.biased,
    }
    if shape.family == "qwen3":
        return Qwen3Config(**common)
    return LlamaConfig(**common, mlp_bias=shape.biased)
