"""A loaded task: its deltas decoded to the engine's dtype, grouped by the module they change."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer.bank.reader import Bank
from taskmix_composer.quant import decode_rows
from taskmix_server.engine.vllm.sites import Part, Site, SiteKind
from taskmix_server.errors import UnsupportedModelError


@dataclass(frozen=True, slots=True)
class Segment:
    """Outputs [start, start + size) of a site, scaled by one column of the coefficient table."""

    start: int
    size: int
    column: int


@dataclass(frozen=True, slots=True)
class SiteDelta:
    """What a task adds to one module.

    weight: [sum of segment sizes, inputs] stacked in segment order; for a norm [size];
        for an embedding or head [rows or vocabulary, hidden]. None if only biases changed.
    segments: where each part of `weight` lands in the module's outputs.
    rows: int64 ids of the vocabulary rows that `weight` holds, or None for all of them.
    biases: a vector per changed bias, with its segment.
    """

    weight: Tensor | None
    segments: tuple[Segment, ...]
    rows: Tensor | None = None
    biases: tuple[tuple[Segment, Tensor], ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ResidentTask:
    """A task's deltas by site name, and the bytes they hold."""

    digest: str
    deltas: Mapping[str, SiteDelta]
    num_bytes: int


@dataclass(frozen=True, slots=True)
class TensorTable:
    """The order of a base's tensors: a coefficient vector has one entry for each."""

    columns: Mapping[str, int]

    @classmethod
    def of(cls, tensors: Iterable[str]) -> "TensorTable":
        return cls({name: column for column, name in enumerate(sorted(tensors))})


@dataclass(frozen=True, slots=True)
class TaskLoader:
    """Decodes tasks of a bank for the sites of one model."""

    sites: tuple[Site, ...]
    table: TensorTable
    dtype: torch.dtype
    device: torch.device

    def load(self, bank: Bank, name: str) -> ResidentTask:
        """Decode a task, one site at a time.

        Raises UnsupportedModelError if the task changes a tensor that no site can take,
        BankFormatError if the bank is damaged.
        """
        entry = bank.entry(name)
        self._check_covered(name, entry.tensors)
        cache: dict[str, tuple[Tensor | None, Tensor]] = {}
        deltas = {}
        for site in self.sites:
            delta = self._site_delta(site, bank, name, cache)
            if delta is not None:
                deltas[site.name] = delta
        return ResidentTask(entry.digest, deltas, _distinct_bytes(deltas.values()))

    def _check_covered(self, name: str, tensors: Iterable[str]) -> None:
        known = {f"{part.name}.weight" for site in self.sites for part in site.parts}
        known |= {
            f"{part.name}.bias"
            for site in self.sites
            if site.kind is SiteKind.LINEAR
            for part in site.parts
        }
        unknown = sorted(set(tensors) - known)
        if unknown:
            raise UnsupportedModelError(
                f"task {name!r} changes {unknown[0]!r} (and {len(unknown) - 1} more), which this "
                "engine cannot mix: linears, embeddings, heads and RMS norms of dense decoders "
                "are supported; remove the task from the bank or serve it merged"
            )

    def _site_delta(
        self, site: Site, bank: Bank, name: str, cache: dict[str, tuple[Tensor | None, Tensor]]
    ) -> SiteDelta | None:
        tensors = bank.entry(name).tensors
        if site.kind in (SiteKind.EMBEDDING, SiteKind.HEAD):
            return self._vocabulary_delta(site.parts[0], bank, name, cache)
        weights, segments = [], []
        for part in site.parts:
            if f"{part.name}.weight" in tensors:
                weights.append(self._read(bank, name, f"{part.name}.weight")[1])
                segments.append(self._segment(part, "weight"))
        biases = tuple(
            (self._segment(part, "bias"), self._read(bank, name, f"{part.name}.bias")[1])
            for part in site.parts
            if f"{part.name}.bias" in tensors
        )
        if not weights and not biases:
            return None
        weight = torch.cat(weights) if weights else None
        return SiteDelta(weight, tuple(segments), biases=biases)

    def _vocabulary_delta(
        self, part: Part, bank: Bank, name: str, cache: dict[str, tuple[Tensor | None, Tensor]]
    ) -> SiteDelta | None:
        tensor = f"{part.name}.weight"
        if tensor not in bank.entry(name).tensors:
            return None
        if tensor not in cache:  # a tied head shares the embedding's delta
            cache[tensor] = self._read(bank, name, tensor)
        rows, weight = cache[tensor]
        return SiteDelta(weight, (self._segment(part, "weight"),), rows=rows)

    def _segment(self, part: Part, leaf: str) -> Segment:
        return Segment(part.start, part.size, self.table.columns[f"{part.name}.{leaf}"])

    def _read(self, bank: Bank, name: str, tensor: str) -> tuple[Tensor | None, Tensor]:
        rows, dense = decode_rows(bank.read(name, tensor))
        moved = None if rows is None else rows.to(self.device, torch.int64)
        dtype = self.dtype if dense.dim() > 1 else torch.float32  # norms and biases stay exact
        return moved, dense.to(self.device, dtype, copy=True)  # never the file's own pages


def _distinct_bytes(deltas: Iterable[SiteDelta]) -> int:
    held = {tensor.data_ptr(): tensor.nbytes for delta in deltas for tensor in _tensors(delta)}
    return sum(held.values())


def _tensors(delta: SiteDelta) -> Iterator[Tensor]:
    if delta.weight is not None:
        yield delta.weight
    if delta.rows is not None:
        yield delta.rows
    for _, bias in delta.biases:
        yield bias
