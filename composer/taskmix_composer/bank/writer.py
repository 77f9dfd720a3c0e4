"""Writing shards and manifests."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from taskmix_composer.bank.delta import EncodedDelta
from taskmix_composer.bank.directory import replace_file, sync_directory
from taskmix_composer.bank.manifest import (
    GRAM_LABEL,
    MANIFEST_FILE,
    SHARD_DIRECTORY,
    Manifest,
    part_key,
    shard_file,
)
from taskmix_composer.bank.opening import GRAM_TENSOR, parts_digest
from taskmix_composer.bank.records import Content, DeltaRecord, GramRecord, ShardRecord
from taskmix_composer.bank.storage import stored_parts
from taskmix_composer.tensorfile import TensorFileWriter, tensor_digest


class ContentWriter:
    """Writes a shard of deltas, one at a time; the bank does not know it until `publish`.

    Used as a context manager, which removes what was not finished.
    """

    def __init__(self, directory: Path, label: str) -> None:
        self._shards = directory / SHARD_DIRECTORY
        self._shards.mkdir(exist_ok=True)
        self._label = label
        self._partial = self._shards / f"{label}.partial"
        self._records: dict[str, DeltaRecord] = {}
        self._file = TensorFileWriter(self._partial)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)
        self._partial.unlink(missing_ok=True)

    def add(self, tensor: str, delta: EncodedDelta) -> None:
        """Append a tensor's delta."""
        parts = stored_parts(delta)
        stored = {part: item.values for part, item in parts.items()}
        self._records[tensor] = DeltaRecord(
            codec=delta.codec,
            shape=delta.shape,
            params=delta.params,
            parts={part: item.record for part, item in parts.items()},
            digest=parts_digest(stored),
        )
        for part, values in stored.items():
            self._file.add(part_key(tensor, part), values)

    def set_params(self, codec: str, params: Mapping[str, int | float]) -> None:
        """Give every delta of a codec these parameters, which its parts do not depend on."""
        for tensor, record in self._records.items():
            if record.codec == codec:
                self._records[tensor] = replace(record, params=params)

    def finish(self) -> Content:
        """Write and sync the shard under its own name."""
        header_digest = self._file.finish()
        shard = ShardRecord(self._partial.stat().st_size, header_digest)
        content = Content(shard, self._records)
        self._partial.replace(self._shards / shard_file(self._label, content.digest))
        sync_directory(self._shards)
        return content


def write_content(
    directory: Path, label: str, deltas: Iterable[tuple[str, EncodedDelta]]
) -> Content:
    """Write a shard of these deltas."""
    with ContentWriter(directory, label) as writer:
        for tensor, delta in deltas:
            writer.add(tensor, delta)
        return writer.finish()


def write_gram(directory: Path, tasks: tuple[str, ...], gram: Tensor) -> GramRecord:
    """Write the table of inner products, float64 [num_tensors, num_tasks, num_tasks]."""
    shards = directory / SHARD_DIRECTORY
    shards.mkdir(exist_ok=True)
    values = gram.to(torch.float64)
    digest = tensor_digest(values)
    path = shards / shard_file(GRAM_LABEL, digest)
    partial = shards / f"{GRAM_LABEL}.partial"
    with TensorFileWriter(partial) as file:
        file.add(GRAM_TENSOR, values)
        header_digest = file.finish()
    partial.replace(path)
    sync_directory(shards)
    return GramRecord(ShardRecord(path.stat().st_size, header_digest), tasks, digest)


def publish(directory: Path, manifest: Manifest) -> None:
    """Make `manifest` the bank's content, then remove the shards it no longer names.

    Banks opened before keep what they have mapped.
    """
    shards = directory / SHARD_DIRECTORY
    shards.mkdir(exist_ok=True)
    replace_file(directory / MANIFEST_FILE, manifest.to_bytes())
    kept = set(manifest.contents())
    if manifest.gram is not None:
        kept.add(shard_file(GRAM_LABEL, manifest.gram.digest))
    for file in shards.iterdir():
        if file.name not in kept:
            file.unlink()
