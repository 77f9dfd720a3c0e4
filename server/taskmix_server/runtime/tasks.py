"""Tasks that requests may use, and the requests that use them.

A task name points at one content digest. Loading a changed task moves the name to the new
content; requests in flight keep what they started with, and the old content is let go with the
last of them.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from taskmix_composer.bank.reader import Bank
from taskmix_composer.errors import UnknownTaskError
from taskmix_composer.mix import Mix
from taskmix_server.engine.base import Engine
from taskmix_server.errors import NotFoundError


class TaskState(Enum):
    """Where a task is."""

    ON_DISK = "on disk"
    LOADING = "loading"
    RESIDENT = "resident"
    UNLOADING = "unloading"


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """A task as an operator sees it; bytes of its encoded deltas, 0 resident if not loaded."""

    name: str
    scheme: str
    num_bytes: int
    resident_bytes: int
    digest: str
    state: TaskState
    references: int


@dataclass(slots=True)
class _Held:
    """Content in the engine: its bytes there and the requests in flight that use it."""

    num_bytes: int
    references: int = 0


Retire = Callable[[str], Awaitable[None]]
"""Forgets what names a content digest, before the engine lets that content go."""


class TaskRegistry:
    """Loads and unloads tasks, and counts the requests that hold them. One event loop only."""

    def __init__(self, bank_path: Path, bank: Bank, engine: Engine) -> None:
        self.bank = bank
        self._bank_path = bank_path
        self._engine = engine
        self._current: dict[str, str] = {}  # task name -> digest that new requests get
        self._held: dict[str, _Held] = {}  # by digest
        self._loading: set[str] = set()
        self._changes = asyncio.Lock()
        self._retirements: set[asyncio.Task[None]] = set()
        self.before_retire: Retire | None = None

    async def load(self, name: str) -> TaskStatus:
        """Make the task of the bank directory, as it is now, what `name` means.

        Raises NotFoundError if the bank has no such task.
        """
        async with self._changes:
            bank = await asyncio.to_thread(Bank.open, self._bank_path)
            digest = bank.entry(name).digest
            if self._current.get(name) != digest:
                await self._move(name, digest)
            self.bank = bank
        return self.status(name)

    async def unload(self, name: str) -> TaskStatus:
        """Refuse new requests for a task and let it go when the last one in flight ends."""
        async with self._changes:
            digest = self._current.pop(name, None)
            if digest is None and name not in self.bank.entries:
                raise UnknownTaskError(f"the bank has no task {name!r}")
            if digest is not None:
                await self._retire_unused(digest)
        return self.status(name, digest)

    def digests(self, mix: Mix) -> Mapping[str, str]:
        """The content that each task of a mix means now; NotFoundError if one is not loaded."""
        missing = [task for task in mix.tasks if task not in self._current]
        if missing:
            raise NotFoundError(
                f"task {missing[0]!r} is not served; loaded tasks are: "
                f"{', '.join(sorted(self._current)) or 'none'} "
                "(`taskmix tasks load NAME` loads one)"
            )
        return {task: self._current[task] for task in mix.tasks}

    def hold(self, digests: Iterable[str]) -> None:
        """Count a request that uses these contents."""
        for digest in digests:
            self._held[digest].references += 1

    def release(self, digests: Iterable[str]) -> None:
        """Count it off again; content that no name means any more goes with its last request."""
        for digest in digests:
            held = self._held[digest]
            held.references -= 1
            if held.references == 0 and digest not in self._current.values():
                task = asyncio.create_task(self._retire_later(digest))
                self._retirements.add(task)
                task.add_done_callback(self._retirements.discard)

    def statuses(self) -> list[TaskStatus]:
        """Every task of the bank, and loaded ones that have left it, by name."""
        return [self.status(name) for name in sorted({*self.bank.entries, *self._current})]

    def status(self, name: str, unloaded_digest: str | None = None) -> TaskStatus:
        """One task as it is now."""
        entry = self.bank.entries.get(name)
        digest = self._current.get(name) or unloaded_digest or (entry.digest if entry else "")
        held = self._held.get(digest)
        return TaskStatus(
            name=name,
            scheme=entry.scheme if entry else "",
            num_bytes=entry.shard.num_bytes if entry else 0,
            resident_bytes=held.num_bytes if held else 0,
            digest=digest,
            state=self._state(name, held),
            references=held.references if held else 0,
        )

    @property
    def num_references(self) -> int:
        """Uses of tasks by requests in flight, over all tasks."""
        return sum(held.references for held in self._held.values())

    @property
    def resident_bytes(self) -> int:
        """Bytes of deltas that the engine holds."""
        return sum(held.num_bytes for held in self._held.values())

    def _state(self, name: str, held: _Held | None) -> TaskState:
        if name in self._loading:
            return TaskState.LOADING
        if name in self._current:
            return TaskState.RESIDENT
        return TaskState.UNLOADING if held is not None else TaskState.ON_DISK

    async def _move(self, name: str, digest: str) -> None:
        self._loading.add(name)
        try:
            num_bytes = await self._engine.load_task(name, digest)
        finally:
            self._loading.discard(name)
        self._held.setdefault(digest, _Held(num_bytes))
        previous = self._current.get(name)
        self._current[name] = digest
        if previous is not None:
            await self._retire_unused(previous)

    async def _retire_later(self, digest: str) -> None:
        async with self._changes:
            await self._retire_unused(digest)

    async def _retire_unused(self, digest: str) -> None:
        held = self._held.get(digest)
        if held is None or held.references or digest in self._current.values():
            return
        del self._held[digest]
        if self.before_retire is not None:
            await self.before_retire(digest)
        await self._engine.unload_task(digest)
