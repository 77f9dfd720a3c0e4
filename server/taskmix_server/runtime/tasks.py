"""Tasks that requests may use, and the requests that use them.

A task name points at one content digest. Loading a changed task moves the name to the new
content; requests in flight keep what they started with, and the old content is let go with the
last of them.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import partial

from taskmix_composer.bank import Bank
from taskmix_composer.bank.latest import LatestBank
from taskmix_composer.bank.records import EntryRecord
from taskmix_composer.checkpoint import HEAD
from taskmix_composer.errors import ComposerError, UnknownTaskError
from taskmix_composer.mix import Mix
from taskmix_server.engine.base import Engine
from taskmix_server.errors import NotFoundError, ServingError, UnavailableError
from taskmix_server.runtime.changes import Changes
from taskmix_server.runtime.memory import MemoryReading
from taskmix_server.telemetry.outcomes import FAILED, OK

logger = logging.getLogger(__name__)


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
    """Content in the engine, as the bank had it, and the requests in flight that use it."""

    entry: EntryRecord
    num_bytes: int
    references: int = 0


Allows = Callable[[str], bool]
"""Whether a caller may use the task of a name. What it may not use does not exist for it."""


def everything(name: str) -> bool:
    """Allows every task: for the server's own needs."""
    return True


Retire = Callable[[str], Awaitable[None]]
"""Forgets what names a content digest, before the engine lets that content go."""

AfterLoad = Callable[[str, str, float], None]
"""Told of each try to load a task's content: its name, `ok` or `failed`, and the seconds."""


class TaskRegistry:
    """Loads and unloads tasks, and counts the requests that hold them. One event loop only.

    `bank` is the bank as it was read last.
    """

    def __init__(self, bank: Bank, engine: Engine) -> None:
        self.bank = bank
        self._latest = LatestBank(bank)
        self._engine = engine
        self._current: dict[str, str] = {}  # task name -> digest that new requests get
        self._held: dict[str, _Held] = {}  # by digest
        self._loading: set[str] = set()
        self._changes = Changes()
        self.before_retire: Retire | None = None
        self.after_load: AfterLoad | None = None
        self.memory = MemoryReading(engine)

    async def load(self, name: str, allows: Allows = everything) -> TaskStatus:
        """Make the task of the bank directory, as it is now, what `name` means.

        Raises UnknownTaskError if the bank has no such task, BaseMismatchError if the directory
        now holds a bank of another base.
        """
        return await self._changes.run(lambda: self._load(name, allows))

    async def unload(self, name: str, allows: Allows = everything) -> TaskStatus:
        """Refuse new requests for a task and let it go when the last one in flight ends."""
        return await self._changes.run(lambda: self._unload(name, allows))

    async def restore(self) -> None:
        """Load what the names mean into an engine that holds nothing.

        What the bank does not have any more is given up: no name may mean other content unasked.
        Raises UnavailableError if the engine died again.
        """
        await self._changes.run(self._restore)

    def digests(self, mix: Mix, allows: Allows = everything) -> Mapping[str, str]:
        """The content that each task of a mix means now.

        Raises NotFoundError if one is not loaded, or not allowed: the two look alike.
        """
        missing = [task for task in mix.tasks if task not in self._current or not allows(task)]
        if missing:
            raise NotFoundError(
                f"task {missing[0]!r} is not served; loaded tasks are: "
                f"{', '.join(sorted(filter(allows, self._current))) or 'none'} "
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
                self._changes.start(partial(self._retire_unused, digest))

    def changes_head(self, digest: str) -> bool:
        """Whether held content changes the output head, or the embedding that is tied to it."""
        stored = {name: group[0] for group in self.bank.base.tie_groups for name in group}
        return stored.get(HEAD, HEAD) in self._held[digest].entry.tensors

    def statuses(self) -> list[TaskStatus]:
        """Every task of the bank, and loaded ones that have left it, by name."""
        return [self.status(name) for name in sorted({*self.bank.entries, *self._current})]

    def status(self, name: str, digest: str | None = None) -> TaskStatus:
        """One task as it is now; `digest` where the name no longer means its content."""
        stored = self.bank.entries.get(name)
        digest = digest or self._current.get(name) or (stored.digest if stored else "")
        is_current = self._current.get(name) == digest
        held = self._held.get(digest)
        if not is_current and digest in self._current.values():
            held = None  # equal content under another name
        entry = held.entry if held else stored
        return TaskStatus(
            name=name,
            scheme=entry.scheme if entry else "",
            num_bytes=entry.num_bytes if entry else 0,
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
        """Bytes of coded deltas that the engine holds, without the vectors that they share."""
        return sum(held.num_bytes for held in self._held.values())

    def _state(self, name: str, held: _Held | None) -> TaskState:
        if name in self._loading:
            return TaskState.LOADING
        if name in self._current:
            return TaskState.RESIDENT
        return TaskState.UNLOADING if held is not None else TaskState.ON_DISK

    async def _load(self, name: str, allows: Allows) -> TaskStatus:
        bank = await asyncio.to_thread(self._latest.open)
        check_known((name,), bank.entries, allows)
        entry = bank.entry(name)
        previous = self._current.get(name)
        if previous != entry.digest:
            num_bytes = await self._load_content(name, entry.digest)
            self._held.setdefault(entry.digest, _Held(entry, num_bytes))
            self._current[name] = entry.digest
        self.bank = bank
        if previous is not None:
            await self._retire_unused(previous)
        return self.status(name)

    async def _restore(self) -> None:
        for name, digest in sorted(self._current.items()):
            try:
                await self._load_content(name, digest)
            except UnavailableError:
                raise
            except (ComposerError, ServingError, OSError) as error:
                logger.error("task %s is not served any more: %s", name, error)
                del self._current[name]
                await self._retire_unused(digest)

    async def _load_content(self, name: str, digest: str) -> int:
        self._loading.add(name)
        started_s, outcome = time.monotonic(), FAILED
        try:
            num_bytes = await self._engine.load_task(name, digest)
            outcome = OK
            return num_bytes
        finally:
            self._loading.discard(name)
            if self.after_load is not None:
                self.after_load(name, outcome, time.monotonic() - started_s)

    async def _unload(self, name: str, allows: Allows) -> TaskStatus:
        check_known((name,), {*self.bank.entries, *self._current}, allows)
        digest = self._current.pop(name, None)
        if digest is not None:
            await self._retire_unused(digest)
        return self.status(name, digest)

    async def _retire_unused(self, digest: str) -> None:
        held = self._held.get(digest)
        if held is None or held.references or digest in self._current.values():
            return
        if self.before_retire is not None:
            await self.before_retire(digest)
        await self._engine.unload_task(digest)
        del self._held[digest]


def check_known(tasks: Iterable[str], known: Collection[str], allows: Allows) -> None:
    """UnknownTaskError if a task is not known, or not allowed: the two look alike."""
    for task in tasks:
        if task not in known or not allows(task):
            held = ", ".join(sorted(filter(allows, known))) or "none"
            raise UnknownTaskError(f"the bank has no task {task!r}; it has {held}")
