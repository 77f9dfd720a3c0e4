"""What a task under masks adds to each module of a model."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.native.packing import PackedDelta, cut
from taskmix_composer.quant import decode
from taskmix_server.engine.vllm.cache import DeltaCache
from taskmix_server.engine.vllm.coded import (
    CodedTensors,
    PackedTensors,
    ResidentTask,
    ResidentVector,
)
from taskmix_server.engine.vllm.sites import Part, Site, SiteKind
from taskmix_server.engine.vllm.tables import SlotTables
from taskmix_server.engine.vllm.weights import (
    Cuts,
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

    packed, weights: of a linear, embedding or head, for the kernel and for torch; each comes with
        the segment or says in its segments where it lands.
    tables: whose slot of the task has what is in neither.
    vectors: float32, a changed bias or norm weight each, with its segment.
    """

    packed: tuple[tuple[PackedDelta, Segment], ...]
    weights: tuple[Weight, ...]
    vectors: tuple[tuple[Segment, Tensor], ...] = ()
    tables: tuple[DeltaSlots, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.packed or self.weights or self.vectors or self.tables)

    def tensors(self) -> Iterator[Tensor]:
        for weight in self.weights:
            yield from weight.tensors()
        for _, vector in self.vectors:
            yield vector


@dataclass(frozen=True, slots=True, eq=False)
class MaskedTask:
    """A task under masks, often none: what a term of a mix adds for a coefficient of 1.

    deltas: by site name. num_bytes: of what was made for it beside the coded task. slot: in the
    tables of a device, None where nothing of it is there.
    """

    digest: str
    masks: Masks
    deltas: Mapping[str, SiteDelta]
    num_bytes: int
    slot: int | None = None

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
    """Arranges coded tasks by the modules of one model, which computes in `dtype` on `device`.

    tables: where tasks without masks go as far as kernels of the device read them.
    """

    sites: tuple[Site, ...]
    table: TensorTable
    dtype: torch.dtype
    device: torch.device
    cache: DeltaCache
    tables: SlotTables | None = None

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
        self,
        task: ResidentTask,
        masks: Masks,
        planes: Mapping[str, CodedTensors],
        slot: int | None = None,
    ) -> MaskedTask:
        """A task under masks; `planes` has theirs by digest. Its slot is taken for it."""
        in_tables: Mapping[str, DeltaSlots] = {}
        if self.tables is not None and slot is not None:
            in_tables = self.tables.load(slot, task, self.sites)
        coded = {
            tensor: delta for tensor, delta in task.vector.coded.items() if tensor not in in_tables
        }
        masked = _masked(coded, masks, planes)
        packed = _cut_packed(task.vector.packed, masks, planes)
        by_parts: dict[tuple[Part, ...], SiteDelta] = {}
        deltas = {}
        for site in self.sites:
            if site.parts not in by_parts:  # a tied head has the embedding's
                by_parts[site.parts] = self._site_delta(site.parts, masked, packed, in_tables)
            delta = by_parts[site.parts]
            if not delta.is_empty:
                deltas[site.name] = delta
        num_bytes = _bytes_beside(task.vector, deltas.values())
        return MaskedTask(task.digest, masks, deltas, num_bytes, slot)

    def _site_delta(
        self,
        parts: tuple[Part, ...],
        masked: Mapping[str, MaskedDelta],
        packed: PackedTensors,
        in_tables: Mapping[str, DeltaSlots],
    ) -> SiteDelta:
        placed = []
        tables = dict.fromkeys(
            in_tables[tensor] for tensor, _ in self._tensors_of(parts) if tensor in in_tables
        )
        stack: list[tuple[MaskedDelta, Segment]] = []
        weights: list[Weight] = []
        vectors = []
        for tensor, segment in self._tensors_of(parts):
            placed += [(delta, segment) for delta in packed.get(tensor, ())]
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
        return SiteDelta(tuple(placed), tuple(weights), tuple(vectors), tuple(tables))

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
    """The coded deltas that the masks leave something of."""
    return {
        tensor: MaskedDelta(delta, cuts)
        for tensor, delta in tensors.items()
        if (cuts := _cuts(tensor, masks, planes)) is not None
    }


def _cut_packed(
    tensors: PackedTensors, masks: Masks, planes: Mapping[str, CodedTensors]
) -> dict[str, tuple[PackedDelta, ...]]:
    """The packed deltas that the masks leave something of."""
    found = {}
    for tensor, parts in tensors.items():
        cuts = _cuts(tensor, masks, planes)
        if cuts is not None:
            found[tensor] = tuple(_cut(part, cuts) for part in parts)
    return found


def _cut(packed: PackedDelta, cuts: Cuts) -> PackedDelta:
    for plane, is_complement in cuts:
        kept = decode(plane).bool()
        kept = kept if packed.rows is None else kept[packed.rows.long()]
        packed = cut(packed, ~kept if is_complement else kept)
    return packed


def _cuts(tensor: str, masks: Masks, planes: Mapping[str, CodedTensors]) -> Cuts | None:
    """What cuts a tensor, or None where nothing is left: a plane keeps none of one it lacks."""
    cuts = []
    for mask in masks:
        plane = planes[mask.removeprefix("!")].get(tensor)
        is_complement = mask.startswith("!")
        if plane is not None:
            cuts.append((plane, is_complement))
        elif not is_complement:
            return None
    return tuple(cuts)


def _is_factored(delta: MaskedDelta) -> bool:
    coded = delta.coded
    is_plain = coded.rows is None and coded.shared is None and not delta.cuts
    return is_plain and coded.codec == "lowrank"


def _bytes_beside(vector: ResidentVector, deltas: Iterable[SiteDelta]) -> int:
    """Bytes of what is neither the vector's coded nor its packed form, each counted once."""
    held = {part for parts in vector.packed.values() for part in parts}
    known = {
        part.data_ptr() for delta in vector.coded.values() for part in delta.tensors().values()
    }
    deltas = list(deltas)
    found = {tensor.data_ptr(): tensor.nbytes for delta in deltas for tensor in delta.tensors()}
    made = {part for delta in deltas for part, _ in delta.packed} - held
    return sum(found[pointer] for pointer in found.keys() - known) + sum(
        part.num_bytes for part in made
    )
