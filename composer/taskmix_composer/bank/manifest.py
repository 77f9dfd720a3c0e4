"""bank.json: what a bank holds, as records, and its one way to be written."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from taskmix_composer.mix import layer_of

FORMAT = "taskmix-bank"
VERSION = 1
MANIFEST_FILE = "bank.json"
SHARD_DIRECTORY = "shards"


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor of the base; `digest` covers its bytes as stored in the checkpoint."""

    dtype: str
    shape: tuple[int, ...]
    digest: str

    @property
    def num_parameters(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class BaseRecord:
    """The base model a bank belongs to: its functional settings and every stored tensor."""

    config: Mapping[str, Any]
    tensors: Mapping[str, TensorRecord]
    tie_groups: tuple[tuple[str, ...], ...]

    @property
    def num_parameters(self) -> int:
        return sum(tensor.num_parameters for tensor in self.tensors.values())

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything a checkpoint must match."""
        return sha256(canonical(_base_to_json(self)))


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One stored tensor of an encoded delta."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class DeltaRecord:
    """An encoded delta; `digest` covers the bytes of its parts."""

    codec: str
    shape: tuple[int, ...]
    params: Mapping[str, int | float]
    parts: Mapping[str, PartRecord]
    digest: str


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The file an entry's deltas lie in, named by `shard_file`."""

    num_bytes: int
    header_digest: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where an entry came from: a directory's name, and the digest and dtype of its weights."""

    source: str
    digest: str
    dtype: str


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """One task vector of the bank; `digest` covers its coded content, not its name or origin."""

    scheme: str
    shard: ShardRecord
    tensors: Mapping[str, DeltaRecord]
    provenance: Provenance
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        digest = sha256(
            canonical({name: _delta_to_json(delta) for name, delta in self.tensors.items()})
        )
        object.__setattr__(self, "digest", digest)


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything bank.json says."""

    base: BaseRecord
    entries: Mapping[str, EntryRecord] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the whole bank."""
        return sha256(canonical(_content(self)))

    def with_entry(self, name: str, entry: EntryRecord) -> "Manifest":
        return replace(self, entries={**self.entries, name: entry})

    def without_entry(self, name: str) -> "Manifest":
        entries = {task: entry for task, entry in self.entries.items() if task != name}
        return replace(self, entries=entries)

    def to_bytes(self) -> bytes:
        """The only bytes that bank.json may hold for this content."""
        return (canonical({**_content(self), "digest": self.digest}) + "\n").encode()


def canonical(fields: object) -> str:
    """JSON with sorted keys and no spaces."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def shard_file(task: str, digest: str) -> str:
    """The name of the file that holds an entry with this content digest."""
    return f"{task}-{digest[:16]}.safetensors"


def part_key(tensor: str, part: str) -> str:
    """The name of a delta's part within its shard."""
    return f"{tensor}/{part}"


def _base_to_json(base: BaseRecord) -> dict[str, object]:
    return {
        "config": dict(base.config),
        "num_parameters": base.num_parameters,
        "tensors": {
            name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "digest": tensor.digest}
            for name, tensor in base.tensors.items()
        },
        "tie_groups": [list(group) for group in base.tie_groups],
    }


def _delta_to_json(delta: DeltaRecord) -> dict[str, object]:
    return {
        "codec": delta.codec,
        "shape": list(delta.shape),
        "params": dict(delta.params),
        "parts": {
            part: {"dtype": record.dtype, "shape": list(record.shape)}
            for part, record in delta.parts.items()
        },
        "digest": delta.digest,
    }


def _entry_to_json(name: str, entry: EntryRecord) -> dict[str, object]:
    return {
        "scheme": entry.scheme,
        "digest": entry.digest,
        "shard": {
            "file": shard_file(name, entry.digest),
            "bytes": entry.shard.num_bytes,
            "header_digest": entry.shard.header_digest,
        },
        "tensors": {name: _delta_to_json(delta) for name, delta in entry.tensors.items()},
        "provenance": {
            "source": entry.provenance.source,
            "digest": entry.provenance.digest,
            "dtype": entry.provenance.dtype,
        },
    }


def _content(manifest: Manifest) -> dict[str, object]:
    """Everything but the digest."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "base": _base_to_json(manifest.base),
        "blocks": [_block(tensor) for tensor in sorted(manifest.base.tensors)],
        "entries": {name: _entry_to_json(name, entry) for name, entry in manifest.entries.items()},
        "planes": {},
    }


def _block(tensor: str) -> dict[str, object]:
    """A tensor's place in the model: its layer, and what it is within it."""
    layer = layer_of(tensor)
    role = tensor.removesuffix(".weight")
    if layer is not None:
        role = role.partition(f".{layer}.")[2]
    return {"tensor": tensor, "layer": layer, "role": role}
