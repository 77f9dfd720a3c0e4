"""Making a task ready to run: everything but telling the layers, for whichever thread."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_server.engine.vllm.background import until_exit
from taskmix_server.engine.vllm.coded import NO_VECTOR, CodedLoader, ResidentTask, ResidentVector
from taskmix_server.engine.vllm.deltas import DeltaArranger, MaskedTask
from taskmix_server.engine.vllm.slots import Slots
from taskmix_server.engine.vllm.weights import StackedWeight


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """What a worker held when a load began.

    shared: vectors by digest. room_bytes: what its cache had left.
    """

    shared: Mapping[str, ResidentVector]
    terms: tuple[MaskedTask, ...]
    room_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class LoadedTask:
    """A task, ready to run.

    shared: the vector that it is coded over. term: the task without masks. dense: forms that were
    made of it. slots: of what was held when the load began, and of the task.
    """

    task: ResidentTask
    shared: ResidentVector
    term: MaskedTask
    dense: Mapping[StackedWeight, Tensor]
    slots: Slots


@dataclass(frozen=True, slots=True)
class TaskLoader:
    """Reads tasks, and arranges them for one model."""

    codes: CodedLoader
    arranger: DeltaArranger

    def load(self, bank: Bank, name: str, held: Held) -> LoadedTask:
        """Read a task of a bank and make of it what steps need.

        Every dense form is made once, lest content that cannot be decoded be found out in a
        forward pass.
        """
        entry = bank.entry(name)
        self.arranger.check_covered(name, entry.tensors)
        shared = held.shared.get(entry.shared, NO_VECTOR)
        if entry.shared and shared is NO_VECTOR:
            shared = self.codes.shared(bank, entry.shared)
        task = self.codes.task(bank, name, shared)
        bank.let_go()
        slot = None
        if self.arranger.tables is not None:
            live = held.shared.keys() | bank.manifest.shared.keys()
            slot = self.arranger.tables.take({term.slot for term in held.terms}, live)
        term = self.arranger.arranged(task, (), {}, slot)
        dense = _dense_forms(term, held.room_bytes)
        return LoadedTask(task, shared, term, dense, self.slots((*held.terms, term)))

    def slots(self, terms: tuple[MaskedTask, ...]) -> Slots:
        """The slots of terms, with the tables of all modules."""
        slots = Slots(terms)
        for site in until_exit(self.arranger.sites):
            slots.parts(site)
        return slots


def _dense_forms(term: MaskedTask, room_bytes: int) -> dict[StackedWeight, Tensor]:
    """The dense forms that fit into `room_bytes`; the others are made and let go."""
    kept = {}
    for weight in until_exit(term.cacheable()):
        dense = weight.decoded()
        if dense.nbytes <= room_bytes:
            room_bytes -= dense.nbytes
            kept[weight] = dense
    return kept
