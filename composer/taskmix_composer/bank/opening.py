"""Opening a bank's files: the manifest as written, every shard laid out as the manifest says."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from taskmix_composer.bank.manifest import (
    GRAM_LABEL,
    MANIFEST_FILE,
    SHARD_DIRECTORY,
    Manifest,
    part_key,
    shard_file,
)
from taskmix_composer.bank.parse import parse_manifest
from taskmix_composer.bank.records import DeltaRecord, ShardRecord
from taskmix_composer.errors import BankFormatError
from taskmix_composer.tensorfile import DTYPE_NAMES, TensorFile, TensorFileError, tensor_bytes

MAX_MANIFEST_BYTES = 1 << 30
GRAM_TENSOR = "gram"
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Dtype and shape of each tensor of a shard."""


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


def open_shards(path: Path, manifest: Manifest) -> dict[str, TensorFile]:
    """Map every shard and check that it is laid out as the manifest says."""
    shards = {}
    for file, content in manifest.contents().items():
        shards[file] = _open_shard(path, file, content.shard, dict(_parts(content.tensors)))
    if manifest.gram is not None:
        file = shard_file(GRAM_LABEL, manifest.gram.digest)
        num_tasks = len(manifest.gram.tasks)
        layout = {GRAM_TENSOR: ("F64", (len(manifest.base.tensors), num_tasks, num_tasks))}
        shards[file] = _open_shard(path, file, manifest.gram.shard, layout)
    return shards


def _open_shard(path: Path, name: str, record: ShardRecord, layout: Layout) -> TensorFile:
    file = path / SHARD_DIRECTORY / name
    try:
        shard = TensorFile(file)
    except OSError as error:
        raise BankFormatError(f"the shard cannot be read: {error.strerror}", path=file) from None
    except TensorFileError as error:
        raise BankFormatError(str(error), path=file) from None
    if shard.num_bytes != record.num_bytes:
        raise BankFormatError(
            f"the shard has {shard.num_bytes} bytes, expected {record.num_bytes}", path=file
        )
    stored = {key: (DTYPE_NAMES[span.dtype], span.shape) for key, span in shard.spans.items()}
    if shard.header_digest != record.header_digest or stored != layout:
        raise BankFormatError("the shard's header does not match the manifest", path=file)
    return shard


def _parts(tensors: Mapping[str, DeltaRecord]) -> Iterable[tuple[str, tuple[str, tuple[int, ...]]]]:
    for tensor, delta in tensors.items():
        for part, record in delta.parts.items():
            yield part_key(tensor, part), record.stored
