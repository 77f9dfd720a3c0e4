"""The numbers that masked tasks have in kernels, and what kernels read of them at each module."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.kernels.products import Part, PartTable
from taskmix_server.engine.vllm.deltas import MaskedTask
from taskmix_server.engine.vllm.sites import Site


@dataclass(frozen=True, slots=True)
class SiteParts:
    """What all tasks add to one site: packed deltas, and whether there are others beside them.

    tables: of a device, that have what some tasks add.
    """

    packed: PartTable | None
    has_others: bool
    tables: tuple[DeltaSlots, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Slots:
    """Every masked task that a mix can name now, in the order of its number.

    A kernel's table of a site has the parts of all of them: it stays as it is while steps come and
    go, and is made anew only when a task is loaded or dropped.
    """

    tasks: tuple[MaskedTask, ...]
    _numbers: dict[MaskedTask, int] = field(init=False)
    _parts: dict[str, SiteParts] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        numbers = {task: number for number, task in enumerate(self.tasks)}
        object.__setattr__(self, "_numbers", numbers)

    def of(self, task: MaskedTask) -> int:
        """The number of a task."""
        return self._numbers[task]

    def parts(self, site: Site) -> SiteParts:
        """What the tasks add to a site."""
        found = self._parts.get(site.name)
        if found is None:
            found = self._parts[site.name] = site_parts(self.tasks, site)
        return found


def site_parts(tasks: Sequence[MaskedTask], site: Site) -> SiteParts:
    """What tasks, numbered as they come, add to a site."""
    numbered = [
        (number, task.deltas[site.name])
        for number, task in enumerate(tasks)
        if site.name in task.deltas
    ]
    parts = [
        Part(packed, number, segment.start, segment.column)
        for number, delta in numbered
        for packed, segment in delta.packed
    ]
    table = None
    if parts:
        table = PartTable.of(parts, site.num_outputs, parts[0].delta.shape[1])
    has_others = any(delta.weights or delta.vectors for _, delta in numbered)
    tables = dict.fromkeys(held for _, delta in numbered for held in delta.tables)
    return SiteParts(table, has_others, tuple(tables))


NO_SLOTS = Slots(())
"""The slots of a worker that holds no task."""
