"""An open bank: its manifest, and its deltas mapped from disk."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from taskmix_composer.bank.binding import check_bounds, check_places
from taskmix_composer.bank.delta import ROWS, EncodedDelta
from taskmix_composer.bank.manifest import GRAM_LABEL, SHARED_LABEL, Manifest, part_key, shard_file
from taskmix_composer.bank.opening import (
    GRAM_TENSOR,
    open_shards,
    parts_digest,
    read_manifest,
)
from taskmix_composer.bank.records import Content, EntryRecord, PartRecord, PlaneRecord
from taskmix_composer.bank.storage import loaded_parts
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
from taskmix_composer.mix import Mix
from taskmix_composer.tensorfile import DTYPE_NAMES, TensorFile, tensor_digest


class Bank:
    """A bank as it was when it was opened.

    `revision` is sixteen hexadecimal digits that name its content; `entry_digests` and
    `plane_digests` map names to content digests, as `Mix.digest` takes them.

    Every shard is mapped at opening, so later changes of the directory do not reach this object;
    deltas are read and checked one at a time.
    """

    def __init__(self, path: Path, manifest: Manifest, shards: Mapping[str, TensorFile]) -> None:
        self.path = path
        self.manifest = manifest
        self.base = manifest.base
        self.entries = manifest.entries
        self.planes = manifest.planes
        self.revision = manifest.digest[:16]
        self.entry_digests = {name: entry.digest for name, entry in self.entries.items()}
        self.plane_digests = {name: plane.digest for name, plane in self.planes.items()}
        self._shards = shards

    @classmethod
    def open(cls, path: Path) -> "Bank":
        """Read the manifest and map the shards, again if a writer replaced them meanwhile."""
        manifest = read_manifest(path)
        while True:
            try:
                return cls(path, manifest, open_shards(path, manifest))
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

    def plane(self, name: str) -> PlaneRecord:
        if name not in self.planes:
            held = ", ".join(sorted(self.planes)) or "none"
            raise InvalidMixError(
                f"the bank has no plane {name!r}; it has {held} (`bank merge --planes` makes them)"
            )
        return self.planes[name]

    def read(self, task: str, tensor: str, shared: EncodedDelta | None = None) -> EncodedDelta:
        """A task's delta for one tensor among `entry(task).tensors`, its bytes verified.

        `shared` spares reading the delta it is coded over, for a caller that has it.
        """
        entry = self.entry(task)
        if entry.shared and shared is None:
            shared = self.read_shared(entry.shared, tensor)
        return self._read(task, entry.content, tensor, shared)

    def read_shared(self, digest: str, tensor: str) -> EncodedDelta | None:
        """A shared vector's delta for one tensor, or None if it has none there."""
        content = self.manifest.shared[digest].content
        return self._read(SHARED_LABEL, content, tensor) if tensor in content.tensors else None

    def read_exact(self, task: str, tensor: str) -> EncodedDelta:
        """A task's archived tensor, of `entry(task).exact`."""
        content = self.entry(task).exact
        assert content is not None, "called for archived tasks only"
        return self._read(task, content, tensor)

    def read_plane(self, name: str, tensor: str) -> EncodedDelta | None:
        """A plane's mask of one tensor, or None if it masks all of it out."""
        content = self.plane(name).content
        return self._read(name, content, tensor) if tensor in content.tensors else None

    def let_go(self) -> None:
        """Take what was read out of this process' memory; the shards stay mapped."""
        for shard in self._shards.values():
            shard.let_go()

    def read_gram(self) -> Tensor | None:
        """The inner products of the decoded tasks, if the bank has them.

        float64 [num_tensors, num_tasks, num_tasks]; tensors and tasks in the order of their names.
        """
        record = self.manifest.gram
        if record is None:
            return None
        shard = self._shards[shard_file(GRAM_LABEL, record.digest)]
        gram = shard.read(GRAM_TENSOR)
        if tensor_digest(gram) != record.digest:
            raise BankFormatError("the Gram table does not match its digest", path=shard.path)
        return gram

    def _read(
        self, label: str, content: Content, tensor: str, shared: EncodedDelta | None = None
    ) -> EncodedDelta:
        record = content.tensors[tensor]
        shard = self._shards[shard_file(label, content.digest)]
        stored = {part: shard.read(part_key(tensor, part)) for part in record.parts}
        try:
            if parts_digest(stored) != record.digest:
                raise BankFormatError("the stored bytes do not match their digest")
            parts = loaded_parts(record, stored, shared)
            rows = parts.pop(ROWS, None)
            return EncodedDelta(record.codec, record.shape, record.params, parts, rows, shared)
        except BankFormatError as error:
            raise BankFormatError(
                f"{error}; restore the bank from a copy, or remove task {label} and add it again",
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
        """Refuse a mix that names a plane, layer or tensor that is not there, or does not fit."""
        check_places(mix, self.base.tensors)
        for plane in mix.planes:
            self.plane(plane)
        check_bounds(mix, self.manifest)
