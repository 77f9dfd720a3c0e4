"""Writing a mix as an ordinary Hugging Face checkpoint."""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.bank.directory import new_directory
from taskmix_composer.checkpoint import WEIGHTS_FILE, Checkpoint
from taskmix_composer.compose import is_changed, merged_tensor
from taskmix_composer.mix import Mix
from taskmix_composer.tensorfile import TensorFileWriter

CONFIG_FILE = "config.json"
COPIED_FILES = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template*",
    "*.model",
    "LICENSE*",
)


def export_checkpoint(
    bank: Bank, base: Checkpoint, mix: Mix, out: Path, dtype: torch.dtype | None = None
) -> None:
    """Write base plus mix to the new directory `out`, a tensor at a time.

    Every changed tensor is summed in float32 and rounded once, to `dtype` or else to its dtype in
    the base; without `dtype`, tensors that the mix leaves alone keep their bits. Tied tensors are
    written once.
    """
    bank.check_mix(mix)
    bank.check_base(base)
    with new_directory(out) as directory:
        with TensorFileWriter(directory / WEIGHTS_FILE) as writer:
            for name in base.tensors:
                writer.add(name, _exported_tensor(bank, base, mix, name, dtype))
            writer.finish()
        _copy_files(base, directory, dtype)


def _exported_tensor(
    bank: Bank, base: Checkpoint, mix: Mix, name: str, dtype: torch.dtype | None
) -> Tensor:
    tensor = base.read(name)
    stored = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
    if is_changed(bank, mix, name):
        tensor = merged_tensor(tensor, bank, mix, name)
    return tensor.to(stored)


def _copy_files(base: Checkpoint, directory: Path, dtype: torch.dtype | None) -> None:
    """Copy tokenizer and generation files, and the configuration with `dtype` in it."""
    for pattern in COPIED_FILES:
        for file in sorted(base.directory.glob(pattern)):
            if file.is_file():
                shutil.copyfile(file, directory / file.name)
    if dtype is None:
        shutil.copyfile(base.directory / CONFIG_FILE, directory / CONFIG_FILE)
        return
    config = dict(base.config)
    stated = [key for key in ("dtype", "torch_dtype") if key in config] or ["torch_dtype"]
    config.update(dict.fromkeys(stated, str(dtype).removeprefix("torch.")))
    text = json.dumps(config, indent=2, sort_keys=True)
    (directory / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
