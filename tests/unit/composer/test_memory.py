"""Building a bank holds a few tensors, never a checkpoint."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.unit.composer.models import EMBEDDING, save_model

SCRIPT = Path(__file__).with_name("measure_build.py")
EMBEDDING_SHAPE = (8192, 1024)
LAYER_SHAPE = (1024, 2048)
NUM_LAYERS = 9
LARGEST_TENSOR_BYTES = 4 * EMBEDDING_SHAPE[0] * EMBEDDING_SHAPE[1]
ALLOWED_BYTES = 4 * LARGEST_TENSOR_BYTES + (64 << 20)


def save_large_model(directory: Path, value: float) -> Path:
    """A bfloat16 model whose two float32 copies would not fit into the allowance."""
    tile = torch.linspace(-value, value, EMBEDDING_SHAPE[1]).bfloat16()
    weights = {EMBEDDING: tile.repeat(EMBEDDING_SHAPE[0], 1)}
    for layer in range(NUM_LAYERS):
        name = f"model.layers.{layer}.mlp.up_proj.weight"
        weights[name] = tile.repeat(LAYER_SHAPE[0], LAYER_SHAPE[1] // EMBEDDING_SHAPE[1])
    checkpoint_bytes = 4 * sum(tensor.numel() for tensor in weights.values())
    assert 2 * checkpoint_bytes > ALLOWED_BYTES
    return save_model(directory, weights)


@pytest.mark.parametrize("scheme", ["int4", "dense"])
def test_growth_of_anonymous_memory_is_bounded(tmp_path: Path, scheme: str) -> None:
    base = save_large_model(tmp_path / "base", 1.0)
    tuned = save_large_model(tmp_path / "tuned", 1.1)
    command = [sys.executable, str(SCRIPT), str(base), str(tuned), scheme, str(tmp_path / "bank")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    growth = int(result.stdout)
    assert LARGEST_TENSOR_BYTES < growth <= ALLOWED_BYTES
