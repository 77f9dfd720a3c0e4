"""An open bank: its manifest, and its deltas mapped from disk."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from taskmix_composer.bank.delta import ROWS, EncodedDelta
from taskmix_composer.bank.manifest import (
    MANIFEST_FILE,
    SHARD_DIRECTORY,
    DeltaRecord,
    EntryRecord,
    Manifest,
    PartRecord,
    part_key,
    shard_file,
)
from taskmix_composer.bank.parse import parse_manifest
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.errors import (
    BankFormatError,
    BaseMismatchError,
    InvalidMixError,
    UnknownTaskError,
)
from taskmix_composer.identity import (
    DigestCache,
    config_differences,
    digest_reader,
    functional_config,
)
from taskmix_composer.mix import Mix, Term, layer_of
from taskmix_composer.tensorfile import (
    DTYPE_NAMES,
    TensorFile,
    TensorFileError,
    tensor_bytes,
)

MAX_MANIFEST_BYTES = 1 << 30


class Bank:
    """A bank as it was when it was opened.

    `revision` is sixteen hexadecimal digits that name its content; `entry_digests` maps tasks to
    content digests, as `Mix.digest` takes them.

    Every shard is mapped at opening, so later changes of the directory do not reach this object;
    deltas are read and checked one at a time.
    """

    def __init__(self, path: Path, manifest: Manifest, shards: Mapping[str, TensorFile]) -> None:
        self.path = path
        self.manifest = manifest
        self.base = manifest.base
        self.entries = manifest.entries
        self.revision = manifest.digest[:16]
        self.entry_digests = {name: entry.digest for name, entry in self.entries.items()}
        self._shards = shards

    @classmethod
    def open(cls, path: Path) -> "Bank":
        """Read the manifest and map the shards, again if a writer replaced them meanwhile."""
        manifest = read_manifest(path)
        while True:
            try:
                shards = {
                    name: _open_shard(path, name, entry) for name, entry in manifest.entries.items()
                }
                return cls(path, manifest, shards)
            except BankFormatError:
                current = read_manifest(path)
                if current == manifest:
                    raise
                manifest = current

    def entry(self, task: str) -> EntryRecord:
        if task not in self.entries:
            held = ", ".join(sorted(self.entries)) or "none"
            raise UnknownTaskError(f"the bank has no task {task!r}; it has {held}")
        return self.entries[task]

    def read(self, task: str, tensor: str) -> EncodedDelta:
        """A task's delta for one tensor among `entry(task).tensors`, its bytes verified."""
        record = self.entry(task).tensors[tensor]
        shard = self._shards[task]
        parts = {part: shard.read(part_key(tensor, part)) for part in record.parts}
        try:
            if parts_digest(parts) != record.digest:
                raise BankFormatError("the stored bytes do not match their digest")
            rows = parts.pop(ROWS, None)
            return EncodedDelta(record.codec, record.shape, record.params, parts, rows)
        except BankFormatError as error:
            raise BankFormatError(
                f"{error}; restore the bank from a copy, or remove task {task} and add it again",
                path=shard.path,
                tensor=tensor,
            ) from None

    def check_base(self, checkpoint: Checkpoint, cache: DigestCache | None = None) -> None:
        """Refuse a checkpoint that is not this bank's base, naming the first difference."""
        where = f"{checkpoint.directory} is not the base of {self.path}"
        changed = config_differences(self.base.config, functional_config(checkpoint.config))
        if changed:
            raise BaseMismatchError(f"{where}: config.json differs in {', '.join(changed)}")
        names = sorted(self.base.tensors.keys() ^ checkpoint.tensors.keys())
        if names:
            raise BaseMismatchError(f"{where}: only one of them has {names[0]}")
        digest_of = digest_reader(checkpoint, cache)
        for name, record in self.base.tensors.items():
            info = checkpoint.tensors[name]
            found = PartRecord(DTYPE_NAMES[info.dtype], info.shape)
            if found != PartRecord(record.dtype, record.shape):
                raise BaseMismatchError(
                    f"{where}: {name} is {found.dtype} {list(found.shape)}, expected "
                    f"{record.dtype} {list(record.shape)}"
                )
            if digest_of(name) != record.digest:
                raise BaseMismatchError(f"{where}: the values of {name} differ")

    def check_mix(self, mix: Mix) -> None:
        """Refuse a mix that names a task, plane, layer or tensor this bank does not have."""
        for task in mix.tasks:
            self.entry(task)
        self.check_places(mix)

    def check_places(self, mix: Mix) -> None:
        """Refuse a mix that names a plane, layer or tensor that is not there."""
        layers = {layer_of(tensor) for tensor in self.base.tensors}
        for term in mix.terms:
            _check_term(term, layers, self.base.tensors)


def read_manifest(path: Path) -> Manifest:
    """Read a bank directory's bank.json."""
    file = path / MANIFEST_FILE
    try:
        if file.stat().st_size > MAX_MANIFEST_BYTES:
            raise BankFormatError("the manifest is larger than 1 GiB", path=file)
        content = file.read_bytes()
    except OSError as error:
        raise BankFormatError(
            f"cannot be read ({error.strerror}); give a directory that `bank build` made", path=file
        ) from None
    return parse_manifest(content, file)


def parts_digest(parts: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of parts' bytes in the order of their names."""
    digest = hashlib.sha256()
    for part in sorted(parts):
        digest.update(tensor_bytes(parts[part]))
    return digest.hexdigest()


def _open_shard(path: Path, task: str, entry: EntryRecord) -> TensorFile:
    """Map an entry's shard and check that it is laid out as the manifest says."""
    file = path / SHARD_DIRECTORY / shard_file(task, entry.digest)
    try:
        shard = TensorFile(file)
    except OSError as error:
        raise BankFormatError(f"the shard cannot be read: {error.strerror}", path=file) from None
    except TensorFileError as error:
        raise BankFormatError(str(error), path=file) from None
    if shard.num_bytes != entry.shard.num_bytes:
        raise BankFormatError(
            f"the shard has {shard.num_bytes} bytes, expected {entry.shard.num_bytes}", path=file
        )
    stored = {key: (DTYPE_NAMES[span.dtype], span.shape) for key, span in shard.spans.items()}
    if shard.header_digest != entry.shard.header_digest or stored != dict(_parts(entry.tensors)):
        raise BankFormatError("the shard's header does not match the manifest", path=file)
    return shard


def _parts(tensors: Mapping[str, DeltaRecord]) -> Iterable[tuple[str, tuple[str, tuple[int, ...]]]]:
    for tensor, delta in tensors.items():
        for part, record in delta.parts.items():
            yield part_key(tensor, part), (record.dtype, record.shape)


def _check_term(term: Term, layers: set[int | None], tensors: Mapping[str, object]) -> None:
    if term.masks:
        raise InvalidMixError(f"the bank has no plane {term.masks[0]!r}; leave masks out")
    for layer, _ in term.by_layer:
        if layer not in layers:
            raise InvalidMixError(f"{term.task}: the base has no layer {layer}; leave it out")
    for tensor, _ in term.by_tensor:
        if tensor not in tensors:
            raise InvalidMixError(
                f"{term.task}: the base stores no tensor {tensor!r}; `bank inspect --json` lists "
                "the names"
            )
