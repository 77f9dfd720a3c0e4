"""What the engine holds of tasks, within a budget of bytes: what was used least recently goes."""

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from taskmix_composer.bank.records import EntryRecord
from taskmix_server.engine.base import Engine
from taskmix_server.errors import FailedPreconditionError
from taskmix_server.telemetry.outcomes import FAILED, OK

logger = logging.getLogger(__name__)

BeforeUnload = Callable[[str], Awaitable[None]]
"""Forgets what names a content digest, before the engine lets that content go."""

AfterLoad = Callable[[str, str, float], None]
"""Told of each try to load a task's content: its name, `ok` or `failed`, and the seconds."""


@dataclass(slots=True)
class Content:
    """A task's content in the engine, as the bank had it, and the requests in flight that use it.

    is_leaving: no other request may begin to.
    """

    entry: EntryRecord
    num_bytes: int
    references: int = 0
    is_leaving: bool = False


class Residency:
    """Contents in the engine by digest. One event loop only, and one change at a time.

    max_bytes: of all contents together, without the vectors that they share; None is no bound. A
    content that was never loaded counts what it takes in the bank until it is there: for so long
    the sum may be off.
    """

    def __init__(self, engine: Engine, max_bytes: int | None = None) -> None:
        self._engine = engine
        self._max_bytes = max_bytes
        self._contents: OrderedDict[str, Content] = OrderedDict()  # least recently used first
        self._sizes: dict[str, int] = {}  # of every content that was ever loaded
        self._released = asyncio.Event()
        self.loading: set[str] = set()
        self.before_unload: BeforeUnload | None = None
        self.after_load: AfterLoad | None = None
        self.after_eviction: Callable[[], None] | None = None

    def find(self, digest: str) -> Content | None:
        """A content, if the engine holds it."""
        return self._contents.get(digest)

    @property
    def num_bytes(self) -> int:
        return sum(content.num_bytes for content in self._contents.values())

    @property
    def num_references(self) -> int:
        """Uses of contents by requests in flight."""
        return sum(content.references for content in self._contents.values())

    def has_room(self, entry: EntryRecord) -> bool:
        """Whether a content fits without another having to go."""
        return self._surplus(self._size(entry)) <= 0

    def is_ready(self, digests: Iterable[str]) -> bool:
        """Whether requests may begin to use all of these contents now."""
        found = (self._contents.get(digest) for digest in digests)
        return all(content is not None and not content.is_leaving for content in found)

    def hold(self, digests: Iterable[str]) -> None:
        """Count a request that uses these contents: they stay until it is counted off."""
        for digest in digests:
            self._contents[digest].references += 1
            self._contents.move_to_end(digest)

    def release(self, digests: Iterable[str]) -> None:
        """Count it off again."""
        for digest in digests:
            self._contents[digest].references -= 1
            self._contents.move_to_end(digest)
        self._released.set()

    async def load(self, wanted: Mapping[str, EntryRecord]) -> None:
        """Have the engine hold contents, by task name; others make room for them.

        No new request may use what has to go, and those that do are waited for. Raises
        FailedPreconditionError if the wanted contents alone are more than the budget.
        """
        self._check_fits(wanted)
        entries = {entry.digest: entry for entry in wanted.values()}
        missing = {
            entry.digest: name
            for name, entry in wanted.items()
            if entry.digest not in self._contents
        }
        await self._make_room(entries.keys(), sum(self._size(entries[each]) for each in missing))
        for digest, name in missing.items():
            self._sizes[digest] = await self._load(name, digest)
            self._contents[digest] = Content(entries[digest], self._sizes[digest])
        try:
            self._check_fits(wanted)
        except FailedPreconditionError:
            for digest in missing:
                await self.unload(digest)
            raise
        await self._make_room(entries.keys(), 0)

    async def load_again(self, name: str, digest: str) -> None:
        """Load a content that the engine held before it was started again."""
        self._contents[digest].num_bytes = await self._load(name, digest)

    async def unload(self, digest: str) -> None:
        """Let a content go that no request uses."""
        content = self._contents[digest]
        content.is_leaving = True
        if self.before_unload is not None:
            await self.before_unload(digest)
        await self._engine.unload_task(digest)
        del self._contents[digest]

    async def _load(self, name: str, digest: str) -> int:
        self.loading.add(name)
        started_s, outcome = time.monotonic(), FAILED
        try:
            num_bytes = await self._engine.load_task(name, digest)
            outcome = OK
            return num_bytes
        finally:
            self.loading.discard(name)
            if self.after_load is not None:
                self.after_load(name, outcome, time.monotonic() - started_s)

    async def _make_room(self, kept: AbstractSet[str], needed: int) -> None:
        """Let contents go but those in `kept`, until `needed` bytes more fit or none is left."""
        victims = self._victims(kept, self._surplus(needed))
        for content in victims.values():
            content.is_leaving = True
        try:
            for digest, content in victims.items():
                while content.references:
                    self._released.clear()
                    await self._released.wait()
                await self.unload(digest)
                logger.info("let go of a task of %s bytes to make room", f"{content.num_bytes:,}")
                if self.after_eviction is not None:
                    self.after_eviction()
        finally:
            for content in victims.values():
                content.is_leaving = False

    def _victims(self, kept: AbstractSet[str], surplus: int) -> dict[str, Content]:
        """What has to go for so many bytes: what is idle first, and then what was used first."""
        others = [pair for pair in self._contents.items() if pair[0] not in kept]
        found: dict[str, Content] = {}
        for digest, content in sorted(others, key=lambda pair: pair[1].references > 0):
            if surplus <= 0:
                break
            found[digest] = content
            surplus -= content.num_bytes
        return found

    def _surplus(self, needed: int) -> int:
        """Bytes over the budget with `needed` more."""
        return 0 if self._max_bytes is None else self.num_bytes + needed - self._max_bytes

    def _size(self, entry: EntryRecord) -> int:
        return self._sizes.get(entry.digest, entry.num_bytes)

    def _check_fits(self, wanted: Mapping[str, EntryRecord]) -> None:
        known = sum(self._sizes.get(digest, 0) for digest in {e.digest for e in wanted.values()})
        if self._max_bytes is not None and known > self._max_bytes:
            raise FailedPreconditionError(
                f"the server keeps at most {self._max_bytes:,} bytes of tasks (--task-memory), "
                f"against {known:,} of {', '.join(sorted(wanted))}: mix fewer, code them smaller "
                "(`taskmix bank recode`), or serve with more"
            )
