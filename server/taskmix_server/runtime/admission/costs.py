"""What a token costs under a mix, beside what it costs on the base."""

from dataclasses import dataclass
from typing import Self

from taskmix_composer.checkpoint import Checkpoint
from taskmix_server.domain.variant import Variant
from taskmix_server.runtime.tasks import TaskRegistry


@dataclass(frozen=True, slots=True)
class TokenCosts:
    """A token is made by reading the weights: deltas cost what their bytes are of the base's."""

    tasks: TaskRegistry
    base_bytes: int

    @classmethod
    def over(cls, base: Checkpoint, tasks: TaskRegistry) -> Self:
        """With the bytes of a base as it is stored."""
        stored = base.tensors.values()
        return cls(tasks, sum(info.num_parameters * info.dtype.itemsize for info in stored))

    def of(self, variant: Variant) -> float:
        """1 for the base; for a mix, more by the bytes of its tasks' deltas in the engine."""
        held = (self.tasks.status(task, digest) for task, digest in variant.entries.items())
        return 1.0 + sum(status.resident_bytes for status in held) / self.base_bytes
