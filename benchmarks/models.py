"""SmolLM2-135M and eight full fine-tunes of it for measurements of speed.

The fine-tunes are the base with seeded noise on every tensor: for speed only bytes matter.
"""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from examples.smollm2 import prepare_base
from taskmix_composer.bank.manifest import VERSION
from taskmix_composer.build import build_bank
from taskmix_composer.forms import Forms

TASKS = tuple(f"task{index}" for index in range(8))


def prepare(cache: Path, scheme: str) -> tuple[Path, Path]:
    """The base and a bank of the eight tasks under `scheme`, made unless they are there."""
    base = prepare_base(cache)
    bank = cache / f"bench-{scheme}-v{VERSION}"
    if not bank.exists():
        sources = {name: _perturbed(base, cache / "bench" / name) for name in TASKS}
        build_bank(base, sources, Forms.parse(scheme), bank)
        shutil.rmtree(cache / "bench")
    return base, bank


def _perturbed(base: Path, out: Path) -> Path:
    shutil.copytree(base, out, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    generator = torch.Generator().manual_seed(TASKS.index(out.name))
    weights = {}
    for name, weight in load_file(base / "model.safetensors").items():
        wide = weight.float()
        noise = torch.randn(weight.shape, generator=generator)
        weights[name] = (wide + 0.02 * wide.std() * noise).to(weight.dtype)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    return out
