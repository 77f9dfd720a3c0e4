"""bank.json: everything a bank holds, and its one way to be written."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from taskmix_composer.bank.records import (
    BaseRecord,
    Content,
    Derivation,
    EntryRecord,
    GramRecord,
    PlaneRecord,
    Provenance,
    ShardRecord,
    SharedRecord,
    base_to_json,
    canonical,
    delta_to_json,
    derivation_to_json,
    sha256,
)
from taskmix_composer.mix import layer_of

FORMAT = "taskmix-bank"
VERSION = 2
MANIFEST_FILE = "bank.json"
SHARD_DIRECTORY = "shards"
SHARED_LABEL = "_shared"  # written beside its tasks' shards, and no name that a task may have
GRAM_LABEL = "gram"


@dataclass(frozen=True, slots=True)
class Manifest:
    """Everything bank.json says."""

    base: BaseRecord
    entries: Mapping[str, EntryRecord] = field(default_factory=dict)
    shared: Mapping[str, SharedRecord] = field(default_factory=dict)
    planes: Mapping[str, PlaneRecord] = field(default_factory=dict)
    gram: GramRecord | None = None

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the whole bank."""
        return sha256(canonical(_content(self)))

    def contents(self) -> dict[str, Content]:
        """Everything that lies in shards of deltas, by file name."""
        labelled = [(name, entry.content) for name, entry in self.entries.items()]
        labelled += [(name, entry.archive) for name, entry in self.entries.items() if entry.archive]
        labelled += [(SHARED_LABEL, shared.content) for shared in self.shared.values()]
        labelled += [(name, plane.content) for name, plane in self.planes.items()]
        return {shard_file(label, content.digest): content for label, content in labelled}

    def with_entries(self, entries: Mapping[str, EntryRecord]) -> "Manifest":
        return replace(self, entries={**self.entries, **entries})

    def without_entry(self, name: str) -> "Manifest":
        """Without a task, and without a shared vector that no other task uses."""
        return replace(
            self, entries={task: entry for task, entry in self.entries.items() if task != name}
        ).pruned()

    def pruned(self) -> "Manifest":
        """Without the shared vectors that no entry uses."""
        used = {entry.shared for entry in self.entries.values()}
        kept = {digest: shared for digest, shared in self.shared.items() if digest in used}
        return replace(self, shared=kept)

    def to_bytes(self) -> bytes:
        """The only bytes that bank.json may hold for this content."""
        return (canonical({**_content(self), "digest": self.digest}) + "\n").encode()


def shard_file(label: str, digest: str) -> str:
    """The name of the file that holds the content with this digest."""
    return f"{label}-{digest[:16]}.safetensors"


def part_key(tensor: str, part: str) -> str:
    """The name of a delta's part within its shard."""
    return f"{tensor}/{part}"


def _shard_to_json(file: str, shard: ShardRecord) -> dict[str, object]:
    return {"file": file, "bytes": shard.num_bytes, "header_digest": shard.header_digest}


def _content_to_json(label: str, content: Content) -> dict[str, object]:
    return {
        "shard": _shard_to_json(shard_file(label, content.digest), content.shard),
        "tensors": {name: delta_to_json(delta) for name, delta in content.tensors.items()},
    }


def _provenance_to_json(provenance: Provenance | Derivation) -> dict[str, object]:
    if isinstance(provenance, Derivation):
        return derivation_to_json(provenance)
    return {
        "source": provenance.source,
        "digest": provenance.digest,
        "dtype": provenance.dtype,
    }


def _entry_to_json(name: str, entry: EntryRecord) -> dict[str, object]:
    return {
        **_content_to_json(name, entry.content),
        "scheme": entry.scheme,
        "digest": entry.digest,
        "provenance": _provenance_to_json(entry.provenance),
        "shared": entry.shared,
        "archive": None if entry.archive is None else _content_to_json(name, entry.archive),
    }


def _shared_to_json(shared: SharedRecord) -> dict[str, object]:
    return {
        **_content_to_json(SHARED_LABEL, shared.content),
        "scheme": shared.scheme,
        "derivation": derivation_to_json(shared.derivation),
    }


def _plane_to_json(name: str, plane: PlaneRecord) -> dict[str, object]:
    return {
        **_content_to_json(name, plane.content),
        "derivation": derivation_to_json(plane.derivation),
        "density": plane.density,
    }


def _gram_to_json(gram: GramRecord) -> dict[str, object]:
    return {
        "shard": _shard_to_json(shard_file(GRAM_LABEL, gram.digest), gram.shard),
        "tasks": list(gram.tasks),
        "digest": gram.digest,
    }


def _content(manifest: Manifest) -> dict[str, object]:
    """Everything but the digest."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "base": base_to_json(manifest.base),
        "blocks": [_block(tensor) for tensor in sorted(manifest.base.tensors)],
        "entries": {name: _entry_to_json(name, entry) for name, entry in manifest.entries.items()},
        "shared": {digest: _shared_to_json(shared) for digest, shared in manifest.shared.items()},
        "planes": {name: _plane_to_json(name, plane) for name, plane in manifest.planes.items()},
        "gram": None if manifest.gram is None else _gram_to_json(manifest.gram),
    }


def _block(tensor: str) -> dict[str, object]:
    """A tensor's place in the model: its layer, and what it is within it."""
    layer = layer_of(tensor)
    role = tensor.removesuffix(".weight")
    if layer is not None:
        role = role.partition(f".{layer}.")[2]
    return {"tensor": tensor, "layer": layer, "role": role}
