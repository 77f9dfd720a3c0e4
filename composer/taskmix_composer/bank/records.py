"""What a bank holds, as records: the base, its deltas, and where they came from."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskmix_composer.tensorfile import DTYPES


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor of the base; `digest` covers its bytes as stored in the checkpoint."""

    dtype: str
    shape: tuple[int, ...]
    digest: str

    @property
    def num_parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_parameters * DTYPES[self.dtype].itemsize


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
        return sha256(canonical(base_to_json(self)))


@dataclass(frozen=True, slots=True)
class PartRecord:
    """One tensor of an encoded delta.

    `num_coded` is the length of the entropy-coded bytes that are stored in its place, or None
    where it is stored as it is.
    """

    dtype: str
    shape: tuple[int, ...]
    num_coded: int | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def stored(self) -> tuple[str, tuple[int, ...]]:
        """Dtype and shape of what lies in the shard."""
        return (self.dtype, self.shape) if self.num_coded is None else ("U8", (self.num_coded,))


@dataclass(frozen=True, slots=True)
class DeltaRecord:
    """An encoded delta; `digest` covers the bytes of its parts as stored."""

    codec: str
    shape: tuple[int, ...]
    params: Mapping[str, int | float]
    parts: Mapping[str, PartRecord]
    digest: str


@dataclass(frozen=True, slots=True)
class ShardRecord:
    """The file that deltas lie in, named by `shard_file`."""

    num_bytes: int
    header_digest: str


@dataclass(frozen=True, slots=True)
class Content:
    """Encoded deltas by tensor and the shard that holds them; `digest` covers what they code."""

    shard: ShardRecord
    tensors: Mapping[str, DeltaRecord]
    digest: str = field(init=False)

    @property
    def resident_bytes(self) -> int:
        """Bytes in memory, where nothing is entropy-coded."""
        return sum(
            part.num_bytes for delta in self.tensors.values() for part in delta.parts.values()
        )

    def __post_init__(self) -> None:
        deltas = {name: delta_to_json(delta) for name, delta in self.tensors.items()}
        object.__setattr__(self, "digest", sha256(canonical(deltas)))


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a fine-tune came from: a directory's name, and the digest and dtype of its weights."""

    source: str
    digest: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Derivation:
    """What was computed from a set of tasks, and how.

    `bound` maps each task of the set to the digest of its fine-tune: what was elected for one set
    means nothing for another. `is_from_bank` says that the tasks were read as the bank codes them
    and not from their originals.
    """

    method: str
    params: Mapping[str, int | float | str]
    bound: Mapping[str, str]
    is_from_bank: bool = False

    @property
    def dtype(self) -> str:
        return "F32"

    @property
    def source(self) -> str:
        return f"{self.method} of {', '.join(sorted(self.bound))}"

    @property
    def digest(self) -> str:
        return sha256(canonical(derivation_to_json(self)))


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """One task vector of the bank.

    `shared` is the digest of the shared vector that its deltas are coded over, or empty.
    `archive` holds the fine-tune bit for bit, where it is kept beside the form that is served.
    `digest` covers the coded content, not its name or origin.
    """

    scheme: str
    content: Content
    provenance: Provenance | Derivation
    shared: str = ""
    archive: Content | None = None

    @property
    def digest(self) -> str:
        if not self.shared:
            return self.content.digest
        return sha256(canonical({"content": self.content.digest, "shared": self.shared}))

    @property
    def tensors(self) -> Mapping[str, DeltaRecord]:
        return self.content.tensors

    @property
    def exact(self) -> Content | None:
        """The content that restores the fine-tune's own bits, if the bank has it."""
        return self.content if self.scheme == "exact" else self.archive

    @property
    def num_bytes(self) -> int:
        """Bytes of the shards that only this entry uses."""
        archived = 0 if self.archive is None else self.archive.shard.num_bytes
        return self.content.shard.num_bytes + archived


@dataclass(frozen=True, slots=True)
class SharedRecord:
    """A vector that the entries of a set are coded over; its digest names it."""

    scheme: str
    content: Content
    derivation: Derivation


@dataclass(frozen=True, slots=True)
class PlaneRecord:
    """A mask over the whole model; tensors it does not list are masked out entirely."""

    content: Content
    derivation: Derivation
    density: float

    @property
    def digest(self) -> str:
        return self.content.digest


@dataclass(frozen=True, slots=True)
class GramRecord:
    """The table of inner products of the decoded task vectors, per tensor of the base.

    The shard holds one tensor, float64 [num_tensors, num_tasks, num_tasks], in the order of the
    base's tensors and of `tasks`, both sorted; `digest` covers its bytes.
    """

    shard: ShardRecord
    tasks: tuple[str, ...]
    digest: str


def canonical(fields: object) -> str:
    """JSON with sorted keys and no spaces."""
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def base_to_json(base: BaseRecord) -> dict[str, object]:
    return {
        "config": dict(base.config),
        "num_parameters": base.num_parameters,
        "tensors": {
            name: {"dtype": tensor.dtype, "shape": list(tensor.shape), "digest": tensor.digest}
            for name, tensor in base.tensors.items()
        },
        "tie_groups": [list(group) for group in base.tie_groups],
    }


def _part_to_json(part: PartRecord) -> dict[str, object]:
    fields: dict[str, object] = {"dtype": part.dtype, "shape": list(part.shape)}
    return fields if part.num_coded is None else {**fields, "coded": part.num_coded}


def delta_to_json(delta: DeltaRecord) -> dict[str, object]:
    return {
        "codec": delta.codec,
        "shape": list(delta.shape),
        "params": dict(delta.params),
        "parts": {part: _part_to_json(record) for part, record in delta.parts.items()},
        "digest": delta.digest,
    }


def derivation_to_json(derivation: Derivation) -> dict[str, object]:
    return {
        "method": derivation.method,
        "params": dict(derivation.params),
        "bound": dict(derivation.bound),
        "from_bank": derivation.is_from_bank,
    }
