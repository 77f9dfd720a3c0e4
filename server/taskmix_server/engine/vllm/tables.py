"""Coded deltas on a device, in slots that Triton's kernels read: a task has one at every module."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Protocol

import torch

from taskmix_composer.bank import Bank, EncodedDelta
from taskmix_composer.kernels.device.slots import DeltaSlots, is_readable
from taskmix_server.engine.vllm.background import until_exit
from taskmix_server.engine.vllm.coded import ResidentTask
from taskmix_server.engine.vllm.sites import Part, Site, SiteKind
from taskmix_server.errors import FailedPreconditionError

SCALED_BITS = (2, 4)
"""Widths that kernels read codes in; narrower codes are put into the next one."""


@dataclass(frozen=True, slots=True)
class Coding:
    """What the deltas of one table have in common; see `DeltaSlots`.

    over: the coding of the vector that its masks are over, and `shared` that vector's digest.
    """

    bits: int
    group: int = 0
    over: "Coding | None" = None
    shared: str = ""


class Coded(Protocol):
    """What a delta and its record in a bank have in common."""

    @property
    def codec(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def params(self) -> Mapping[str, int | float]: ...
    @property
    def parts(self) -> Mapping[str, object]: ...


def coding_of(delta: Coded, over: Coded | None, shared: str, *, is_whole: bool) -> Coding | None:
    """How a delta lies in slots; None where no kernel reads it.

    over: what it is coded over, in the vector with the digest `shared`. is_whole: whether all of
    its rows are coded.
    """
    if not is_whole:
        return None
    if over is None:
        return _coding_alone(delta)
    vector = _coding_alone(over) if delta.codec == "masked" else None
    is_read = vector is not None and vector.bits in SCALED_BITS
    return Coding(1, 0, vector, shared) if is_read else None


def _coding_alone(delta: Coded) -> Coding | None:
    if len(delta.shape) != 2 or "salient" in delta.parts:
        return None
    if delta.codec == "sign":
        return Coding(1)
    if delta.codec != "affine":
        return None
    bits = next((bits for bits in SCALED_BITS if delta.params["bits"] <= bits), None)
    group = int(delta.params["group"])
    return Coding(bits, group) if bits and is_readable(bits, group) else None


@dataclass(slots=True, eq=False)
class SlotTables:
    """The slots of every module, `num_slots` for each coding that tasks have there.

    All tables number tasks alike, so that one list of a step's rows serves all of them.

    columns: of each tensor's coefficients.
    """

    num_slots: int
    columns: Mapping[str, int]
    device: torch.device
    _tables: dict[tuple[tuple[Part, ...], Coding], DeltaSlots] = field(default_factory=dict)
    _shared: set[tuple[Part, Coding]] = field(default_factory=set)

    @property
    def num_bytes(self) -> int:
        """What the tables take, used or not."""
        return sum(table.num_bytes for table in self._tables.values())

    def reserve(self, bank: Bank, sites: Iterable[Site]) -> None:
        """Make the tables that a bank's tasks need, before the engine shares out its memory."""
        for parts in _matrices(sites):
            for part in parts:
                tensor = f"{part.name}.weight"
                for coding in codings_in(bank, tensor):
                    self._table(parts, coding, bank.base.tensors[tensor].shape[1])

    def take(self, used: AbstractSet[int | None], shared: AbstractSet[str]) -> int:
        """A slot that none of `used` is, emptied; drops tables of vectors not among `shared`.

        Raises FailedPreconditionError if there is none.
        """
        free = [slot for slot in range(self.num_slots) if slot not in used]
        if not free:
            raise FailedPreconditionError(
                f"all {self.num_slots} device slots have a task; unload one, or start with a "
                "larger --device-slots"
            )
        for parts, coding in list(self._tables):
            if coding.shared and coding.shared not in shared:
                del self._tables[parts, coding]
        self._shared = {(part, coding) for part, coding in self._shared if coding.shared in shared}
        for table in self._tables.values():
            table.clear(free[0])
        return free[0]

    def load(self, slot: int, task: ResidentTask, sites: Iterable[Site]) -> dict[str, DeltaSlots]:
        """Put what kernels read of a task into its slot; the table that has each such tensor."""
        found = {}
        for parts in _matrices(sites):
            for part in until_exit(parts):
                delta = task.vector.coded.get(f"{part.name}.weight")
                if delta is None:
                    continue
                is_whole = delta.rows is None
                coding = coding_of(delta, delta.shared, task.shared, is_whole=is_whole)
                if coding is not None:
                    table = self._table(parts, coding, delta.shape[1])
                    self._load_shared(table, part, coding, delta)
                    table.load(slot, delta, part.start)
                    found[f"{part.name}.weight"] = table
        return found

    def _load_shared(
        self, table: DeltaSlots, part: Part, coding: Coding, delta: EncodedDelta
    ) -> None:
        """Before the masks, and once: steps may be reading it under those of another task."""
        if table.shared is None or delta.shared is None or (part, coding) in self._shared:
            return
        table.shared.load(0, delta.shared, part.start)
        self._shared.add((part, coding))

    def _table(self, parts: tuple[Part, ...], coding: Coding, num_inputs: int) -> DeltaSlots:
        found = self._tables.get((parts, coding))
        if found is None:
            found = self._tables[parts, coding] = self._made(parts, coding, num_inputs)
        return found

    def _made(self, parts: tuple[Part, ...], coding: Coding, num_inputs: int) -> DeltaSlots:
        shape = (parts[-1].start + parts[-1].size, num_inputs)
        if coding.over is None:
            table = DeltaSlots.allocate(
                self.num_slots, shape, coding.bits, coding.group, self.device
            )
        else:
            over = coding.over
            shared = DeltaSlots.allocate(1, shape, over.bits, over.group, self.device)
            table = DeltaSlots.over(self.num_slots, shared)
        for part in parts:
            column = self.columns.get(f"{part.name}.weight", 0)  # a base may lack one
            table.segments[part.start : part.start + part.size] = column
        return table


def _matrices(sites: Iterable[Site]) -> Iterable[tuple[Part, ...]]:
    """The parts of each linear and embedding, once: a tied head has the embedding's."""
    return dict.fromkeys(site.parts for site in sites if site.kind is not SiteKind.NORM)


def codings_in(bank: Bank, tensor: str) -> Iterator[Coding]:
    """How the tasks of a bank code a tensor, as far as kernels read it."""
    for entry in bank.entries.values():
        delta, over = entry.tensors.get(tensor), None
        if delta is None:
            continue
        if entry.shared:
            over = bank.manifest.shared[entry.shared].content.tensors.get(tensor)
        is_whole = "rows" not in (over or delta).parts
        found = coding_of(delta, over, entry.shared, is_whole=is_whole)
        if found is not None:
            yield found
