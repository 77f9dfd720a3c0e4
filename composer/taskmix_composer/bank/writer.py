"""Writing shards and manifests."""

from collections.abc import Iterable
from pathlib import Path

from taskmix_composer.bank.delta import EncodedDelta
from taskmix_composer.bank.directory import replace_file, sync_directory
from taskmix_composer.bank.manifest import (
    MANIFEST_FILE,
    SHARD_DIRECTORY,
    DeltaRecord,
    EntryRecord,
    Manifest,
    PartRecord,
    Provenance,
    ShardRecord,
    part_key,
    shard_file,
)
from taskmix_composer.bank.reader import parts_digest
from taskmix_composer.tensorfile import DTYPE_NAMES, TensorFileWriter


def write_entry(
    directory: Path,
    task: str,
    scheme: str,
    provenance: Provenance,
    deltas: Iterable[tuple[str, EncodedDelta]],
) -> EntryRecord:
    """Write a task's shard, one delta at a time; the bank does not know it until `publish`."""
    shards = directory / SHARD_DIRECTORY
    shards.mkdir(exist_ok=True)
    partial = shards / f"{task}.partial"
    records = {}
    with TensorFileWriter(partial) as writer:
        for tensor, delta in deltas:
            records[tensor] = _record(delta)
            for part, values in delta.tensors().items():
                writer.add(part_key(tensor, part), values)
        header_digest = writer.finish()
    shard = ShardRecord(partial.stat().st_size, header_digest)
    entry = EntryRecord(scheme, shard, records, provenance)
    partial.replace(shards / shard_file(task, entry.digest))
    sync_directory(shards)
    return entry


def publish(directory: Path, manifest: Manifest) -> None:
    """Make `manifest` the bank's content, then remove the shards it no longer names.

    Banks opened before keep what they have mapped.
    """
    shards = directory / SHARD_DIRECTORY
    shards.mkdir(exist_ok=True)
    replace_file(directory / MANIFEST_FILE, manifest.to_bytes())
    kept = {shard_file(task, entry.digest) for task, entry in manifest.entries.items()}
    for file in shards.iterdir():
        if file.name not in kept:
            file.unlink()


def _record(delta: EncodedDelta) -> DeltaRecord:
    parts = delta.tensors()
    return DeltaRecord(
        codec=delta.codec,
        shape=delta.shape,
        params=delta.params,
        parts={
            part: PartRecord(DTYPE_NAMES[values.dtype], tuple(values.shape))
            for part, values in parts.items()
        },
        digest=parts_digest(parts),
    )
