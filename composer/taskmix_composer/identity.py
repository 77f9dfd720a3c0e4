"""What makes two model directories the same model: functional settings and tensor digests."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.tensorfile import TensorFile, tensor_digest

# Settings that do not change what the weights compute; the tie of the head is compared by tensor.
_VOLATILE_KEYS = frozenset(
    {
        "_attn_implementation_autoset",
        "_name_or_path",
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "decoder_start_token_id",
        "dtype",
        "eos_token_id",
        "hidden_dropout",
        "id2label",
        "initializer_range",
        "label2id",
        "output_attentions",
        "output_hidden_states",
        "pad_token_id",
        "pretraining_tp",
        "problem_type",
        "return_dict",
        "task_specific_params",
        "tie_word_embeddings",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "unsloth_fixed",
        "unsloth_version",
        "use_cache",
    }
)
_ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")


def functional_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that decide what a model computes, nested ones under dotted keys.

    Nulls and empty values count as not stated, and rotary settings are brought to one spelling,
    because configurations of one model differ in both between versions of the tools that save them.
    """
    settings: dict[str, Any] = {}
    for key, value in _one_rope_spelling(config).items():
        if key in _VOLATILE_KEYS or value is None or value in ({}, []):
            continue
        if isinstance(value, Mapping):
            nested = functional_config(value)
            settings.update({f"{key}.{name}": setting for name, setting in nested.items()})
        else:
            settings[key] = value
    return settings


def config_differences(base: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Keys that two functional configurations state differently.

    A key only one of them states is a default the other leaves out, except rotary settings, which
    no tensor would betray.
    """
    both = base.keys() & other.keys()
    rotary = {key for key in base.keys() | other.keys() if "rope." in key}
    return sorted(key for key in both | rotary if base.get(key) != other.get(key))


class DigestCache:
    """Tensor digests of files seen before, kept in one JSON file.

    A file is recognised by its path, size, modification time and inode. A damaged cache counts as
    empty; the next write replaces it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = _read_cache(path)

    def digests(self, file: TensorFile) -> dict[str, str]:
        """The digest of every tensor of a file, computed at most once per state of the file."""
        key = _file_key(file.path)
        found = self._known.get(key)
        if found is None or found.keys() != file.spans.keys():
            found = {name: tensor_digest(file.read(name)) for name in file.spans}
            self._known[key] = found
            self._write()
        return found

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
        with os.fdopen(handle, "w") as file:
            json.dump(self._known, file)
        Path(name).replace(self._path)


def digest_reader(checkpoint: Checkpoint, cache: DigestCache | None = None) -> Callable[[str], str]:
    """A function from stored tensor names to digests, through `cache` if there is one."""

    def read(name: str) -> str:
        if cache is None:
            return tensor_digest(checkpoint.read(name))
        return cache.digests(checkpoint.files[name])[name]

    return read


def _one_rope_spelling(config: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the rotary keys of any version by dotted keys under `rope`."""
    if not any(config.get(key) for key in _ROPE_KEYS):
        return dict(config)
    rope: dict[str, Any] = {"rope_theta": config.get("rope_theta"), "rope_type": "default"}
    for key in ("rope_scaling", "rope_parameters"):
        rope.update(config.get(key) or {})
    if "type" in rope:
        rope["rope_type"] = rope.pop("type")
    others = {key: value for key, value in config.items() if key not in _ROPE_KEYS}
    return {**others, **{f"rope.{key}": value for key, value in rope.items()}}


def _file_key(path: Path) -> str:
    state = path.stat()
    return json.dumps([str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ino])


def _read_cache(path: Path) -> dict[str, dict[str, str]]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {
        key: digests
        for key, digests in known.items()
        if isinstance(digests, dict) and all(isinstance(text, str) for text in digests.values())
    }
