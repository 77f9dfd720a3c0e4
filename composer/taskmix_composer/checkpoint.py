"""Hugging Face model directories, read tensor by tensor."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskmix_composer.errors import CheckpointError
from taskmix_composer.tensorfile import TensorFile, TensorFileError

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
HEAD = "lm_head.weight"
_EMBEDDING_ENDINGS = ("embed_tokens.weight", "wte.weight")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor as stored."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A model's configuration and weights.

    `tensors` lists each stored tensor once; `aliases` maps further names of tied tensors to it.
    """

    directory: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, TensorInfo]
    aliases: Mapping[str, str]
    files: Mapping[str, TensorFile]

    @classmethod
    def open(cls, directory: Path) -> "Checkpoint":
        """Read names, shapes and dtypes; a tensor's data is read when it is asked for."""
        config = read_json(directory / "config.json")
        files = _open_weights(directory)
        tied_to = _tied_embedding(config, files)
        if tied_to is not None and HEAD in files:
            _check_equal(directory, files, tied_to)
            del files[HEAD]
        tensors = {}
        for name in sorted(files):
            span = files[name].spans[name]
            tensors[name] = TensorInfo(span.dtype, span.shape)
        aliases = {HEAD: tied_to} if tied_to is not None else {}
        return cls(directory, config, tensors, aliases, files)

    @property
    def num_parameters(self) -> int:
        return sum(info.num_parameters for info in self.tensors.values())

    @property
    def tie_groups(self) -> tuple[tuple[str, ...], ...]:
        """Names of one tensor, the stored name first."""
        return tuple((stored, alias) for alias, stored in self.aliases.items())

    def read(self, name: str) -> Tensor:
        """The tensor in its stored dtype, mapped from the file."""
        stored = self.aliases.get(name, name)
        return self.files[stored].read(stored)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a model directory."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} is missing; give a Hugging Face model directory (config.json and "
            "safetensors weights)"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from None
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return fields


def open_tensor_file(path: Path) -> TensorFile:
    """Open safetensors weights of a model directory."""
    try:
        return TensorFile(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except TensorFileError as error:
        raise CheckpointError(f"{path}: {error}; download or save it again") from None


def _open_weights(directory: Path) -> dict[str, TensorFile]:
    """The file that holds each tensor."""
    if (directory / WEIGHTS_FILE).exists():
        file = open_tensor_file(directory / WEIGHTS_FILE)
        return dict.fromkeys(file.spans, file)
    if (directory / INDEX_FILE).exists():
        return _open_shards(directory)
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt")):
        raise CheckpointError(
            f"{directory} holds pickled weights only; convert them to safetensors, for example "
            "with save_pretrained(..., safe_serialization=True)"
        )
    raise CheckpointError(f"{directory} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}")


def _open_shards(directory: Path) -> dict[str, TensorFile]:
    path = directory / INDEX_FILE
    locations = read_json(path).get("weight_map")
    if not isinstance(locations, dict):
        raise CheckpointError(f"{path} has no weight_map; save the model again")
    shards = {}
    for shard in set(locations.values()):
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{path} names {shard!r}, which is not a file beside it")
        shards[shard] = open_tensor_file(directory / shard)
    for name, shard in locations.items():
        if name not in shards[shard].spans:
            raise CheckpointError(f"{path} places {name} in {shard}, which does not hold it")
    return {name: shards[shard] for name, shard in locations.items()}


def _tied_embedding(config: Mapping[str, Any], files: Mapping[str, TensorFile]) -> str | None:
    """The embedding that also serves as output head, if it does.

    Configurations may leave the flag out where the architecture ties by default; then a missing
    head is a tied one.
    """
    embeddings = [
        name
        for name in sorted(files)
        if ("." + name).endswith(tuple("." + end for end in _EMBEDDING_ENDINGS))
    ]
    is_tied = config.get("tie_word_embeddings", HEAD not in files)
    return embeddings[0] if is_tied and embeddings else None


def _check_equal(directory: Path, files: Mapping[str, TensorFile], embedding: str) -> None:
    head = files[HEAD].read(HEAD)
    if not torch.equal(head, files[embedding].read(embedding)):
        raise CheckpointError(
            f"{directory}: config.json ties {HEAD} to {embedding}, but the stored tensors differ; "
            "set tie_word_embeddings to what the model is and save it again"
        )
