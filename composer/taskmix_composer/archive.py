"""Fine-tunes as a bank holds them, in place of the directories they came from."""

from dataclasses import dataclass

from torch import Tensor

from taskmix_composer.adapter import ADAPTER_SCHEME
from taskmix_composer.bank import Bank
from taskmix_composer.bank.records import Derivation, Provenance
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.errors import UnarchivedError
from taskmix_composer.quant import archival, decode


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """A task whose original weights a bank restores: an exact entry, or an adapter's factors."""

    bank: Bank
    task: str

    @classmethod
    def open(cls, bank: Bank, task: str) -> "Archive":
        """Refuse a task of which the bank has a compressed form only."""
        entry = bank.entry(task)
        if entry.exact is None and entry.scheme != ADAPTER_SCHEME:
            raise UnarchivedError(
                f"{bank.path} holds {task!r} as {entry.scheme} only, which has lost the "
                "fine-tune's own weights; build the bank with `exact,` before its --scheme, or "
                "give the original directory"
            )
        return cls(bank, task)

    @property
    def provenance(self) -> Provenance | Derivation:
        return self.bank.entry(self.task).provenance

    @property
    def is_adapter(self) -> bool:
        return self.bank.entry(self.task).scheme == ADAPTER_SCHEME

    def tuned(self, base: Checkpoint, name: str) -> Tensor:
        """A tensor of the fine-tune bit for bit, or the base's own where it did not change."""
        before = base.read(name)
        content = self.bank.entry(self.task).exact
        if content is None or name not in content.tensors:
            return before
        return archival.restore(before, self.bank.read_exact(self.task, name))

    def delta(self, base: Checkpoint, name: str) -> Tensor | None:
        """The float32 difference of one tensor, or None if there is none."""
        entry = self.bank.entry(self.task)
        if self.is_adapter:
            return decode(self.bank.read(self.task, name)) if name in entry.tensors else None
        assert entry.exact is not None, "opened as an archive"
        if name not in entry.exact.tensors:
            return None
        return decode(self.bank.read_exact(self.task, name), base.read(name))


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """A task as its bank serves it, for want of the original."""

    bank: Bank
    task: str

    @property
    def provenance(self) -> Provenance | Derivation:
        return self.bank.entry(self.task).provenance

    def delta(self, base: Checkpoint, name: str) -> Tensor | None:
        """The float32 delta of one tensor, or None if there is none."""
        if name not in self.bank.entry(self.task).tensors:
            return None
        return decode(self.bank.read(self.task, name), base.read(name))
