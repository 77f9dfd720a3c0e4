"""Mixes made ready in the engine: resolved, registered once, kept while used, bounded."""

from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from taskmix_composer.bank import Bank
from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Mix
from taskmix_server.domain.variant import Variant
from taskmix_server.engine.base import Engine
from taskmix_server.errors import FailedPreconditionError
from taskmix_server.runtime.changes import Changes
from taskmix_server.runtime.tasks import Allows, TaskRegistry, everything


@dataclass(slots=True)
class _Ready:
    """A registered variant and the requests in flight that use it."""

    variant: Variant
    num_users: int = 0


class VariantCache:
    """The variants that the engine knows, least recently used first. One event loop only."""

    def __init__(self, tasks: TaskRegistry, engine: Engine, max_variants: int = 4096) -> None:
        self._tasks = tasks
        self._engine = engine
        self._max_variants = max_variants
        self._ready: OrderedDict[str, _Ready] = OrderedDict()  # by digest
        self._changes = Changes()
        tasks.residency.before_unload = self._forget_users_of

    @asynccontextmanager
    async def lease(self, mix: Mix, allows: Allows = everything) -> AsyncIterator[Variant]:
        """A variant that stays servable inside the block; its offloaded tasks are loaded first.

        Raises NotFoundError if a task is not served or not allowed, InvalidMixError if the bank
        cannot serve the mix, FailedPreconditionError if its tasks have no room.
        """
        variant = self.resolve(mix, allows)
        async with self._tasks.use(variant.entries):
            ready = await self._prepare(variant)
            try:
                yield ready.variant
            finally:
                ready.num_users -= 1

    def resolve(self, mix: Mix, allows: Allows = everything) -> Variant:
        """Bind a mix to the content that its tasks and planes mean now."""
        bank = self._tasks.bank
        digests = self._tasks.digests(mix, allows)
        _check_planes(mix, bank, allows)
        bank.check_places(mix)
        _check_masked(mix, digests, bank.entry_digests)
        planes = {plane: bank.plane_digests[plane] for plane in mix.planes}
        return Variant(
            mix=mix,
            digest=mix.digest(digests, planes),
            entries=digests,
            bank_revision=bank.revision,
            changes_head=any(map(self._tasks.changes_head, mix.tasks)),
            planes=planes,
        )

    async def forget_all(self) -> None:
        """Know no variant any more: the engine that did has died."""
        await self._changes.run(self._clear)

    def __len__(self) -> int:
        return len(self._ready)

    async def _prepare(self, variant: Variant) -> _Ready:
        while (ready := self._ready.get(variant.digest)) is None:
            await self._changes.run(lambda: self._register(variant))
        self._ready.move_to_end(variant.digest)
        ready.num_users += 1
        return ready

    async def _register(self, variant: Variant) -> None:
        if variant.digest not in self._ready:
            await self._engine.register_variant(variant)
            self._ready[variant.digest] = _Ready(variant)
            await self._forget(self._surplus())

    def _surplus(self) -> list[str]:
        """The least recently used idle variants over the limit, never the newest one."""
        *older, _ = self._ready.items()
        idle = [digest for digest, ready in older if ready.num_users == 0]
        return idle[: max(0, len(self._ready) - self._max_variants)]

    async def _clear(self) -> None:
        self._ready.clear()

    async def _forget_users_of(self, entry_digest: str) -> None:
        users = [
            digest
            for digest, ready in self._ready.items()
            if entry_digest in ready.variant.entries.values()
        ]
        await self._changes.run(lambda: self._forget(users))

    async def _forget(self, digests: list[str]) -> None:
        """Take variants out before the first wait, so that nobody leases one on its way out."""
        leaving = [self._ready.pop(digest).variant for digest in digests if digest in self._ready]
        for variant in leaving:
            await self._engine.forget_variant(variant)


def _check_planes(mix: Mix, bank: Bank, allows: Allows) -> None:
    """Refuse a plane that does not exist, or that tells of a task which is not allowed.

    What is masked is looked at too: other checks name the tasks that an entry was made of.
    """
    visible = {
        name for name, plane in bank.planes.items() if all(map(allows, plane.derivation.bound))
    }
    for term in mix.terms:
        entry = bank.entries.get(term.task)
        made_of = getattr(entry.provenance, "bound", ()) if entry else ()
        for mask in term.masks:
            plane = mask.removeprefix("!")
            if plane not in visible or not all(map(allows, made_of)):
                held = ", ".join(sorted(visible)) or "none"
                raise InvalidMixError(
                    f"the bank has no plane {plane!r}; it has {held} (`bank merge --planes` makes "
                    "them)"
                )


def _check_masked(mix: Mix, loaded: Mapping[str, str], stored: Mapping[str, str]) -> None:
    """Refuse planes over a task that is no longer the bank's: they were elected for its content."""
    for term in mix.terms:
        if term.masks and loaded[term.task] != stored.get(term.task):
            raise FailedPreconditionError(
                f"task {term.task!r} changed in the bank after it was loaded, and the bank's "
                f"planes may mean its new content; `taskmix tasks load {term.task}` loads that"
            )
