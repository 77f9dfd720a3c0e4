"""SmolLM2-135M and what is served of it in measurements of speed.

Fine-tunes are the base with seeded noise on every tensor, and adapters are noise: for speed only
bytes matter.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from benchmarks.workloads import MIXES, TASKS
from examples.published import is_current, published
from examples.smollm2 import prepare_base
from taskmix_composer.bank import Bank
from taskmix_composer.bank.manifest import VERSION
from taskmix_composer.build import build_bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.export import export_checkpoint
from taskmix_composer.forms import Forms
from taskmix_composer.mix import Mix

SCHEME = "int4"
SMALL_SCHEME = "int2"
MANY_TASKS = tuple(f"task{index}" for index in range(32))
LORA_RANK = 16
LORAS = tuple(f"lora{index}" for index in range(len(TASKS)))


@dataclass(frozen=True, slots=True)
class Models:
    """Directories: the base, banks of `TASKS` and of `MANY_TASKS`, adapters, merged mixes.

    small_bank: of `TASKS` in half the bytes.
    """

    base: Path
    bank: Path
    small_bank: Path
    large_bank: Path
    loras: tuple[Path, ...]
    merged: tuple[Path, ...]


def prepare(cache: Path) -> Models:
    """Make in `cache` what is not there; merged checkpoints are in the order of `MIXES`."""
    base = prepare_base(cache)
    bank = _bank(cache, base, TASKS, SCHEME)
    return Models(
        base=base,
        bank=bank,
        small_bank=_bank(cache, base, TASKS, SMALL_SCHEME),
        large_bank=_bank(cache, base, MANY_TASKS, SCHEME),
        loras=tuple(_adapter(base, cache / "bench-loras" / name) for name in LORAS),
        merged=_merged(cache, base, Bank.open(bank)),
    )


def _bank(cache: Path, base: Path, tasks: Sequence[str], scheme: str) -> Path:
    bank = cache / f"bench-{scheme}-{len(tasks)}-v{VERSION}"
    if not bank.exists():
        sources = {name: _perturbed(base, cache / "bench" / name) for name in tasks}
        build_bank(base, sources, Forms.parse(scheme), bank)
        shutil.rmtree(cache / "bench")
    return bank


def _perturbed(base: Path, out: Path) -> Path:
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    generator = torch.Generator().manual_seed(MANY_TASKS.index(out.name))
    weights = {}
    for name, weight in load_file(base / "model.safetensors").items():
        wide = weight.float()
        noise = torch.randn(weight.shape, generator=generator)
        weights[name] = (wide + 0.02 * wide.std() * noise).to(weight.dtype)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out


def _adapter(base: Path, out: Path) -> Path:
    """A PEFT adapter over every linear of the layers."""
    recipe = {"rank": LORA_RANK, "seed": LORAS.index(out.name)}
    if is_current(out, recipe):
        return out
    generator = torch.Generator().manual_seed(recipe["seed"])
    tensors = Checkpoint.open(base).tensors
    names = [name.removesuffix(".weight") for name in tensors if name.endswith("_proj.weight")]
    factors = {}
    for name in names:
        num_outputs, num_inputs = tensors[f"{name}.weight"].shape
        for half, shape in (("A", (LORA_RANK, num_inputs)), ("B", (num_outputs, LORA_RANK))):
            noise = 0.01 * torch.randn(shape, generator=generator)
            factors[f"base_model.model.{name}.lora_{half}.weight"] = noise.to(torch.bfloat16)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": LORA_RANK,
        "lora_alpha": LORA_RANK,
        "bias": "none",
        "target_modules": sorted({name.rpartition(".")[2] for name in names}),
    }
    with published(out, recipe) as directory:
        save_file(factors, directory / "adapter_model.safetensors")
        (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return out


def _merged(cache: Path, base: Path, bank: Bank) -> tuple[Path, ...]:
    """A checkpoint of each mix, as the bank serves it."""
    directory = cache / f"bench-merged-{bank.revision}"
    checkpoint = Checkpoint.open(base)
    made = tuple(directory / str(index) for index in range(len(MIXES)))
    directory.mkdir(exist_ok=True)
    for mix, out in zip(MIXES, made, strict=True):
        if not out.exists():
            export_checkpoint(bank, checkpoint, Mix.parse(mix), out)
    return made
