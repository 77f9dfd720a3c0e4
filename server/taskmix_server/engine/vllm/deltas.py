"""What a task under masks adds to each module of a model."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_server.engine.vllm.cache import DeltaCache
from taskmix_server.engine.vllm.coded import CodedTensors, ResidentTask
from taskmix_server.engine.vllm.sites import Part, Site, SiteKind
from taskmix_server.engine.vllm.weights import (
    Factors,
    MaskedDelta,
    Segment,
    StackedWeight,
    Weight,
)
from taskmix_server.errors import UnsupportedModelError

Masks = tuple[str, ...]
"""Digests of planes, sorted; with a leading `!`, of a plane whose complement is meant."""


@dataclass(frozen=True, slots=True, eq=False)
class SiteDelta:
    """What a masked task adds to one module.

    weights: of a linear, embedding or head; each says in its segments where it lands.
    vectors: float32, a changed bias or norm weight each, with its segment.
    """

    weights: tuple[Weight, ...]
    vectors: tuple[tuple[Segment, Tensor], ...] = ()

    def tensors(self) -> Iterator[Tensor]:
        for weight in self.weights:
            yield from weight.tensors()
        for _, vector in self.vectors:
            yield vector


@dataclass(frozen=True, slots=True, eq=False)
class MaskedTask:
    """A task under masks, often none: what a term of a mix adds for a coefficient of 1.

    deltas: by site name. num_bytes: of what was made for it beside the coded task.
    """

    digest: str
    masks: Masks
    deltas: Mapping[str, SiteDelta]
    num_bytes: int

    def cacheable(self) -> list[StackedWeight]:
        """Each weight that must be made dense, once: a tied head and its embedding share one."""
        weights = (weight for delta in self.deltas.values() for weight in delta.weights)
        stacked = (weight for weight in weights if isinstance(weight, StackedWeight))
        return list(dict.fromkeys(weight for weight in stacked if weight.plain is None))


@dataclass(frozen=True, slots=True)
class TensorTable:
    """The order of a base's tensors: a coefficient vector has one entry for each."""

    columns: Mapping[str, int]

    @classmethod
    def of(cls, tensors: Iterable[str]) -> "TensorTable":
        return cls({name: column for column, name in enumerate(sorted(tensors))})


@dataclass(frozen=True, slots=True)
class DeltaArranger:
    """Arranges coded tasks by the modules of one model, which computes in `dtype` on `device`."""

    sites: tuple[Site, ...]
    table: TensorTable
    dtype: torch.dtype
    device: torch.device
    cache: DeltaCache

    def check_covered(self, name: str, tensors: Iterable[str]) -> None:
        """Raise UnsupportedModelError if a task changes a tensor that no site can take."""
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

    def arranged(
        self, task: ResidentTask, masks: Masks, planes: Mapping[str, CodedTensors]
    ) -> MaskedTask:
        """A task under masks; `planes` has theirs by digest."""
        masked = _masked(task.tensors, masks, planes)
        by_parts: dict[tuple[Part, ...], SiteDelta] = {}
        deltas = {}
        for site in self.sites:
            if site.parts not in by_parts:  # a tied head has the embedding's
                by_parts[site.parts] = self._site_delta(site.parts, masked)
            delta = by_parts[site.parts]
            if delta.weights or delta.vectors:
                deltas[site.name] = delta
        num_bytes = _bytes_beside(task.tensors, deltas.values())
        return MaskedTask(task.digest, masks, deltas, num_bytes)

    def _site_delta(self, parts: tuple[Part, ...], masked: Mapping[str, MaskedDelta]) -> SiteDelta:
        stack: list[tuple[MaskedDelta, Segment]] = []
        weights: list[Weight] = []
        vectors = []
        for tensor, segment in self._tensors_of(parts):
            delta = masked.get(tensor)
            if delta is None:
                continue
            if len(delta.coded.shape) == 1:
                vectors.append((segment, delta.values().to(self.device)))
            elif _is_factored(delta):
                weights.append(self._factors(delta.coded, segment))
            else:
                stack.append((delta, segment))
        if stack:
            deltas, segments = zip(*stack, strict=True)
            weights.append(StackedWeight(deltas, segments, self.dtype, self.device, self.cache))
        return SiteDelta(tuple(weights), tuple(vectors))

    def _tensors_of(self, parts: tuple[Part, ...]) -> Iterator[tuple[str, Segment]]:
        for part in parts:
            for leaf in ("weight", "bias"):
                tensor = f"{part.name}.{leaf}"
                if tensor in self.table.columns:
                    yield tensor, Segment(part.start, part.size, self.table.columns[tensor])

    def _factors(self, coded: EncodedDelta, segment: Segment) -> Factors:
        a, b = (coded.parts[part].to(self.device) for part in ("a", "b"))
        return Factors(a, b, coded.params["scaling"], (segment,))


def _masked(
    tensors: CodedTensors, masks: Masks, planes: Mapping[str, CodedTensors]
) -> dict[str, MaskedDelta]:
    """The deltas that the masks leave something of; a plane keeps nothing of a tensor it lacks."""
    kept = {tensor: delta for tensor, delta in tensors.items() if 0 not in delta.coded_shape}
    cuts: dict[str, list[tuple[EncodedDelta, bool]]] = {tensor: [] for tensor in kept}
    for mask in masks:
        plane = planes[mask.removeprefix("!")]
        is_complement = mask.startswith("!")
        for tensor in list(cuts):
            if tensor in plane:
                cuts[tensor].append((plane[tensor], is_complement))
            elif not is_complement:
                del cuts[tensor]
    return {tensor: MaskedDelta(kept[tensor], tuple(found)) for tensor, found in cuts.items()}


def _is_factored(delta: MaskedDelta) -> bool:
    coded = delta.coded
    is_plain = coded.rows is None and coded.shared is None and not delta.cuts
    return is_plain and coded.codec == "lowrank"


def _bytes_beside(coded: CodedTensors, deltas: Iterable[SiteDelta]) -> int:
    """Bytes of the tensors that are not the coded ones, each counted once."""
    known = {part.data_ptr() for delta in coded.values() for part in delta.tensors().values()}
    found = {tensor.data_ptr(): tensor.nbytes for delta in deltas for tensor in delta.tensors()}
    return sum(found[pointer] for pointer in found.keys() - known)
