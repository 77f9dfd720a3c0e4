"""Tasks that requests may use, and the requests that use them.

A task name stands for one content of the bank. Loading a changed task moves the name to the new
content; requests in flight keep what they started with, and the old content is let go with the
last of them. Where tasks have a budget, what no request uses may leave the engine and come back.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
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
from taskmix_server.runtime.residency import Content, Residency
from taskmix_server.runtime.statuses import TaskState, TaskStatus

logger = logging.getLogger(__name__)


Allows = Callable[[str], bool]
"""Whether a caller may use the task of a name. What it may not use does not exist for it."""


def everything(name: str) -> bool:
    """Allows every task: for the server's own needs."""
    return True


class TaskRegistry:
    """Which tasks are served, and what their names mean. One event loop only.

    `bank` is the bank as it was read last, `residency` what of the tasks is in the engine.
    """

    def __init__(self, bank: Bank, engine: Engine, max_bytes: int | None = None) -> None:
        """max_bytes: of tasks in the engine; None keeps every served task there."""
        self.bank = bank
        self.residency = Residency(engine, max_bytes)
        self.memory = MemoryReading(engine)
        self._latest = LatestBank(bank)
        self._served: dict[str, EntryRecord] = {}  # what new requests get, by task name
        self._changes = Changes()

    async def load(self, name: str, allows: Allows = everything) -> TaskStatus:
        """Make the task of the bank directory, as it is now, what `name` means.

        Raises UnknownTaskError if the bank has no such task, BaseMismatchError if the directory
        now holds a bank of another base.
        """
        return await self._changes.run(lambda: self._load(name, allows))

    async def offer(self, name: str) -> TaskStatus:
        """Serve a task of the bank as it was read, loaded only if no other has to make room."""
        return await self._changes.run(lambda: self._offer(name))

    async def unload(self, name: str, allows: Allows = everything) -> TaskStatus:
        """Refuse new requests for a task and let it go when the last one in flight ends."""
        return await self._changes.run(lambda: self._unload(name, allows))

    async def restore(self) -> None:
        """Load what the engine held of served tasks into one that holds nothing.

        What the bank does not have any more is given up: no name may mean other content unasked.
        Raises UnavailableError if the engine died again.
        """
        await self._changes.run(self._restore)

    def digests(self, mix: Mix, allows: Allows = everything) -> Mapping[str, str]:
        """The content that each task of a mix means now.

        Raises NotFoundError if one is not served, or not allowed: the two look alike.
        """
        missing = [task for task in mix.tasks if task not in self._served or not allows(task)]
        if missing:
            raise NotFoundError(
                f"task {missing[0]!r} is not served; loaded tasks are: "
                f"{', '.join(sorted(filter(allows, self._served))) or 'none'} "
                "(`taskmix tasks load NAME` loads one)"
            )
        return {task: self._served[task].digest for task in mix.tasks}

    @asynccontextmanager
    async def use(self, contents: Mapping[str, str]) -> AsyncIterator[None]:
        """Keep contents in the engine while the block runs; what is offloaded is loaded first.

        contents: `digests` of this moment. Raises NotFoundError if a task was unloaded while it was
        waited for, FailedPreconditionError if the budget has no room for all of them.
        """
        if self.residency.is_ready(contents.values()):
            self.hold(contents.values())
        else:
            await self._bring(contents)
        try:
            yield
        finally:
            self.release(contents.values())

    def hold(self, digests: Iterable[str]) -> None:
        """Count a request that uses these contents."""
        self.residency.hold(digests)

    def release(self, digests: Iterable[str]) -> None:
        """Count it off again; content that no name means any more goes with its last request."""
        self.residency.release(digests)
        for digest in digests:
            if not self._is_meant(digest):
                self._changes.start(partial(self._retire_unused, digest))

    def changes_head(self, name: str) -> bool:
        """Whether a served task changes the output head, or the embedding that is tied to it."""
        stored = {tied: group[0] for group in self.bank.base.tie_groups for tied in group}
        return stored.get(HEAD, HEAD) in self._served[name].tensors

    def statuses(self) -> list[TaskStatus]:
        """Every task of the bank, and served ones that have left it, by name."""
        return [self.status(name) for name in sorted({*self.bank.entries, *self._served})]

    def status(self, name: str, digest: str | None = None) -> TaskStatus:
        """One task as it is now; `digest` where the name no longer means its content."""
        stored, served = self.bank.entries.get(name), self._served.get(name)
        meant = served or stored
        digest = digest or (meant.digest if meant else "")
        is_meant = served is not None and served.digest == digest
        content = self.residency.find(digest)
        if not is_meant and self._is_meant(digest):
            content = None  # equal content under another name
        entry = content.entry if content else (served if is_meant else stored)
        return TaskStatus(
            name=name,
            scheme=entry.scheme if entry else "",
            num_bytes=entry.num_bytes if entry else 0,
            resident_bytes=content.num_bytes if content else 0,
            digest=digest,
            state=self._state(name, content),
            references=content.references if content else 0,
            is_served=served is not None,
        )

    @property
    def num_references(self) -> int:
        """Uses of tasks by requests in flight, over all tasks."""
        return self.residency.num_references

    @property
    def resident_bytes(self) -> int:
        """Bytes of coded deltas that the engine holds, without the vectors that they share."""
        return self.residency.num_bytes

    def _is_meant(self, digest: str) -> bool:
        """Whether any name stands for this content."""
        return any(entry.digest == digest for entry in self._served.values())

    def _state(self, name: str, content: Content | None) -> TaskState:
        if name in self.residency.loading:
            return TaskState.LOADING
        if name in self._served:
            is_held = self.residency.find(self._served[name].digest) is not None
            return TaskState.RESIDENT if is_held else TaskState.OFFLOADED
        return TaskState.ON_DISK if content is None else TaskState.UNLOADING

    async def _load(self, name: str, allows: Allows) -> TaskStatus:
        bank = await asyncio.to_thread(self._latest.open)
        check_known((name,), bank.entries, allows)
        entry, previous = bank.entry(name), self._served.get(name)
        await self.residency.load({name: entry})
        self._served[name] = entry
        self.bank = bank
        if previous is not None:
            await self._retire_unused(previous.digest)
        return self.status(name)

    async def _offer(self, name: str) -> TaskStatus:
        entry = self.bank.entry(name)
        if self.residency.has_room(entry):
            await self.residency.load({name: entry})
        self._served[name] = entry
        return self.status(name)

    async def _bring(self, contents: Mapping[str, str]) -> None:
        """Have contents loaded and held. A caller that leaves meanwhile lets go of them then."""
        bringing = self._changes.start(lambda: self._hold_loaded(contents))
        try:
            await asyncio.shield(bringing)
        except asyncio.CancelledError:
            bringing.add_done_callback(partial(self._give_back, contents))
            raise

    async def _hold_loaded(self, contents: Mapping[str, str]) -> None:
        for name, digest in contents.items():
            if name not in self._served or self._served[name].digest != digest:
                raise NotFoundError(
                    f"task {name!r} was unloaded or replaced while a request waited for it; send "
                    "the request again"
                )
        await self.residency.load({name: self._served[name] for name in contents})
        self.hold(contents.values())

    def _give_back(self, contents: Mapping[str, str], bringing: asyncio.Task[None]) -> None:
        if not bringing.cancelled() and bringing.exception() is None:
            self.release(contents.values())

    async def _restore(self) -> None:
        for name, entry in sorted(self._served.items()):
            if self.residency.find(entry.digest) is None:
                continue
            try:
                await self.residency.load_again(name, entry.digest)
            except UnavailableError:
                raise
            except (ComposerError, ServingError, OSError) as error:
                logger.error("task %s is not served any more: %s", name, error)
                del self._served[name]
                await self._retire_unused(entry.digest)

    async def _unload(self, name: str, allows: Allows) -> TaskStatus:
        check_known((name,), {*self.bank.entries, *self._served}, allows)
        entry = self._served.pop(name, None)
        if entry is None:
            return self.status(name)
        await self._retire_unused(entry.digest)
        return self.status(name, entry.digest)

    async def _retire_unused(self, digest: str) -> None:
        content = self.residency.find(digest)
        if content is not None and not content.references and not self._is_meant(digest):
            await self.residency.unload(digest)


def check_known(tasks: Iterable[str], known: Collection[str], allows: Allows) -> None:
    """UnknownTaskError if a task is not known, or not allowed: the two look alike."""
    for task in tasks:
        if task not in known or not allows(task):
            held = ", ".join(sorted(filter(allows, known))) or "none"
            raise UnknownTaskError(f"the bank has no task {task!r}; it has {held}")
