"""What a worker holds of banks: tasks, the vectors they share, planes, and terms made of them."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from taskmix_composer.bank import Bank
from taskmix_server.engine.vllm.cache import DeltaCache
from taskmix_server.engine.vllm.coded import (
    CodedTensors,
    ResidentTask,
    ResidentVector,
    coded_bytes,
)
from taskmix_server.engine.vllm.deltas import MaskedTask, Masks
from taskmix_server.engine.vllm.loading import Held, LoadedTask, TaskLoader
from taskmix_server.engine.vllm.slots import NO_SLOTS, Slots

TermKey = tuple[str, Masks]
"""A task's digest and its masks."""


@dataclass(slots=True, eq=False)
class DeltaStore:
    """Contents by digest. A shared vector goes with the last task that is coded over it."""

    loader: TaskLoader
    cache: DeltaCache
    _tasks: dict[str, ResidentTask] = field(default_factory=dict)
    _shared: dict[str, ResidentVector] = field(default_factory=dict)
    _planes: dict[str, CodedTensors] = field(default_factory=dict)
    _terms: dict[TermKey, MaskedTask] = field(default_factory=dict)
    _slots: Slots = NO_SLOTS

    def held(self) -> Held:
        """What a task that is loaded now builds upon."""
        room_bytes = self.cache.max_bytes - self.cache.num_bytes
        return Held(dict(self._shared), tuple(self._terms.values()), room_bytes)

    def install(self, loaded: LoadedTask) -> None:
        """Hold a task that was made ready; its dense forms only where nothing has to give way."""
        task = loaded.task
        self._tasks[task.digest] = task
        self._terms[task.digest, ()] = loaded.term
        if task.shared:
            self._shared.setdefault(task.shared, loaded.shared)
        for weight, dense in loaded.dense.items():
            self.cache.fill(weight, dense)
        self._slots = loaded.slots

    def load_task(self, bank: Bank, name: str) -> None:
        """Hold a task of a bank, at once."""
        if not self.holds_task(bank.entry(name).digest):
            self.install(self.loader.load(bank, name, self.held()))

    def terms_without(self, digest: str) -> tuple[MaskedTask, ...]:
        """Every term there is now but those of a task."""
        return tuple(term for key, term in self._terms.items() if key[0] != digest)

    def unload_task(self, digest: str, slots: Slots = NO_SLOTS) -> None:
        """Let go of a task and of every term made of it; `slots` are those without them."""
        self._tasks.pop(digest, None)
        self._drop_terms({key for key in self._terms if key[0] == digest})
        used = {task.shared for task in self._tasks.values()}
        for unused in self._shared.keys() - used:
            del self._shared[unused]
        self._slots = slots

    def load_plane(self, bank: Bank, name: str) -> None:
        """Hold a plane of a bank; `keep_masked` lets it go."""
        digest = bank.plane(name).digest
        if digest not in self._planes:
            self._planes[digest] = self.loader.codes.plane(bank, name)

    def holds_task(self, digest: str) -> bool:
        return digest in self._tasks

    def holds_plane(self, digest: str) -> bool:
        return digest in self._planes

    def slots(self) -> Slots:
        """Every term there is now, numbered; the same object until there is another."""
        tasks = tuple(self._terms.values())
        if self._slots.tasks != tasks:
            self._slots = Slots(tasks)
        return self._slots

    @property
    def has_planes(self) -> bool:
        return bool(self._planes)

    def term(self, digest: str, masks: Masks) -> MaskedTask:
        """The one object for a loaded task under masks whose planes are loaded."""
        key = (digest, masks)
        if key not in self._terms:
            task = self._tasks[digest]
            self._terms[key] = self.loader.arranger.arranged(task, masks, self._planes)
        return self._terms[key]

    def keep_masked(self, used: AbstractSet[TermKey]) -> None:
        """Let go of masked terms that are not among these, and of planes that no term needs."""
        self._drop_terms({key for key in self._terms if key[1] and key not in used})
        needed = {mask.removeprefix("!") for _, masks in self._terms for mask in masks}
        for digest in self._planes.keys() - needed:
            del self._planes[digest]

    def task_bytes(self, digest: str) -> int:
        """Bytes that a loaded task holds by itself."""
        return self._tasks[digest].vector.num_bytes + self._terms[digest, ()].num_bytes

    def memory(self) -> dict[str, int]:
        """Bytes by what holds them, and how often the cache had what was asked for."""
        tables = self.loader.arranger.tables
        masked = sum(term.num_bytes for term in self._terms.values() if term.masks)
        return {
            "tasks": sum(self.task_bytes(digest) for digest in self._tasks),
            "shared": sum(vector.num_bytes for vector in self._shared.values()),
            "slots": 0 if tables is None else tables.num_bytes,
            "planes": masked + sum(coded_bytes(tensors) for tensors in self._planes.values()),
            "cache": self.cache.num_bytes,
            "cache_limit": self.cache.max_bytes,
            "cache_hits": self.cache.num_hits,
            "cache_misses": self.cache.num_misses,
        }

    def _drop_terms(self, keys: AbstractSet[TermKey]) -> None:
        self._slots = NO_SLOTS  # which would hold them
        for key in keys:
            self.cache.drop(self._terms.pop(key).cacheable())
