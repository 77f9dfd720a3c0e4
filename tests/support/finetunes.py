"""Further fine-tunes of a tiny base: an adapter, and weights of which only some rows changed."""

from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.tiny import copy_without_weights


def make_adapter(base: Path, out: Path) -> Path:
    """A LoRA adapter whose second factor is not zero."""
    model = AutoModelForCausalLM.from_pretrained(base)
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])
    adapted = get_peft_model(model, settings)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    adapted.save_pretrained(out)
    return out


def change_rows(base: Path, out: Path, *modules: str) -> Path:
    """A fine-tune that changed a third of the rows of these modules and nothing else."""
    copy_without_weights(base, out)
    weights = load_file(base / "model.safetensors")
    generator = torch.Generator().manual_seed(12)
    for name, weight in weights.items():
        if weight.dim() == 2 and any(module in name for module in modules):
            rows = torch.randperm(len(weight), generator=generator)[: len(weight) // 3]
            noise = 0.1 * torch.randn(len(rows), weight.shape[1], generator=generator)
            weights[name] = weight.index_add(0, rows, noise.to(weight.dtype))
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out
