"""Writing a mix as an ordinary Hugging Face checkpoint."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from taskmix_composer.archive import Archive
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
    bank: Bank,
    base: Checkpoint,
    mix: Mix,
    out: Path,
    dtype: torch.dtype | None = None,
    *,
    is_as_served: bool = False,
) -> None:
    """Write base plus mix to the new directory `out`, a tensor at a time.

    Every changed tensor is summed in float32 and rounded once, to `dtype` or else to its dtype in
    the base; without `dtype`, tensors that the mix leaves alone keep their bits. Tied tensors are
    written once.

    Exact entries stand for their tasks where the bank has them, so that one whole task comes back
    as it was fine-tuned, bit for bit; `is_as_served` takes the forms that a server adds instead.
    """
    bank.check_mix(mix)
    bank.check_base(base)
    mixed = _Mixed(bank, base, mix, is_exact=not is_as_served)
    with new_directory(out) as directory:
        with TensorFileWriter(directory / WEIGHTS_FILE) as writer:
            for name in base.tensors:
                writer.add(name, mixed.tensor(name, dtype))
            writer.finish()
        _copy_files(base, directory, dtype)


@dataclass(frozen=True, slots=True)
class _Mixed:
    """The tensors of base plus mix."""

    bank: Bank
    base: Checkpoint
    mix: Mix
    is_exact: bool

    def tensor(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """One tensor, in `dtype` if it holds floats and one is given, else in its own."""
        stored = self.base.read(name)
        rounded = dtype if dtype is not None and stored.is_floating_point() else None
        if self.is_exact and self._archived is not None:
            tuned = self._archived.tuned(self.base, name)
            return tuned if rounded is None else tuned.to(rounded)
        if is_changed(self.bank, self.mix, name, is_exact=self.is_exact):
            merged = merged_tensor(stored, self.bank, self.mix, name, is_exact=self.is_exact)
            return merged.to(rounded or stored.dtype)
        return stored if rounded is None else stored.to(rounded)

    @property
    def _archived(self) -> Archive | None:
        """The archived task that the whole mix is, if it is one."""
        tasks = self.mix.tasks
        is_whole = self.mix == Mix.of(dict.fromkeys(tasks, 1.0)) and len(tasks) == 1
        if not is_whole or self.bank.entry(tasks[0]).exact is None:
            return None
        return Archive(self.bank, tasks[0])


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
