"""Administration of tasks and named mixes."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from taskmix_composer.errors import ComposerError
from taskmix_composer.mix import Mix
from taskmix_composer.recipe import Recipe
from taskmix_server.errors import (
    NotFoundError,
    PermissionDeniedError,
    ResourceExhaustedError,
)
from taskmix_server.runtime.changes import Changes
from taskmix_server.runtime.loads import TaskLoads
from taskmix_server.runtime.mixes import NamedMixRecord, NamedMixStore
from taskmix_server.runtime.recipes import RecipeExpander
from taskmix_server.runtime.statuses import TaskStatus
from taskmix_server.runtime.tasks import Allows, TaskRegistry
from taskmix_server.runtime.variants import VariantCache
from taskmix_server.tenancy.audit import AuditLog, Change, State
from taskmix_server.tenancy.principal import Principal
from taskmix_server.tenancy.tenant import Tenant, Verb


@dataclass(frozen=True, slots=True)
class DescribedMix:
    """A named mix; its digest is empty while a task it names is not loaded."""

    record: NamedMixRecord
    digest: str


@dataclass(frozen=True, slots=True)
class BankService:
    """The verbs on the served bank. A caller sees what it may use, and nothing else exists."""

    tasks: TaskRegistry
    variants: VariantCache
    recipes: RecipeExpander
    mixes: NamedMixStore
    audit: AuditLog
    changes: Changes
    loads: TaskLoads

    @property
    def revision(self) -> str:
        """The revision of the bank that was read last."""
        return self.tasks.bank.revision

    def list_tasks(self, principal: Principal) -> list[TaskStatus]:
        return [task for task in self.tasks.statuses() if principal.may_use_task(task.name)]

    async def load_task(self, principal: Principal, name: str, request_id: str) -> TaskStatus:
        principal.check_verb(Verb.LOAD_TASK)

        async def load(name: str, allows: Allows) -> TaskStatus:
            return await self._load(principal.tenant, name, allows)

        return await self._change_task(principal, Verb.LOAD_TASK, name, request_id, load)

    async def unload_task(self, principal: Principal, name: str, request_id: str) -> TaskStatus:
        principal.check_verb(Verb.UNLOAD_TASK)

        async def unload(name: str, allows: Allows) -> TaskStatus:
            status = await self.tasks.unload(name, allows)
            self.loads.forget(name)
            return status

        return await self._change_task(principal, Verb.UNLOAD_TASK, name, request_id, unload)

    async def register_mix(
        self, principal: Principal, name: str, wanted: Mix | Recipe, request_id: str
    ) -> DescribedMix:
        """Name a mix that can be served now; NotFoundError if a task it names is not loaded.

        A recipe is expanded once: the name keeps its terms, whatever the bank becomes.
        """
        principal.check_verb(Verb.REGISTER_MIX)
        if not principal.may_name_mix(name):
            raise PermissionDeniedError(
                f"tenant {principal.name!r} may not register a mix as {name!r:.80}; ask an admin "
                "which names are its own"
            )
        principal.check_written(wanted)
        mix = await self.recipes.expand(wanted, principal.may_use_task)
        principal.check_written(mix)  # a method may come to negative coefficients
        self.variants.resolve(mix, principal.may_use_task)
        author = principal.author(request_id)
        record = await asyncio.to_thread(
            self.mixes.register, name, mix, author, principal.may_use_mix
        )
        return self._described(record)

    async def list_mixes(self, principal: Principal) -> list[DescribedMix]:
        records = await asyncio.to_thread(self.mixes.all, principal.may_use_mix)
        return [self._described(record) for record in records]

    async def delete_mix(self, principal: Principal, name: str, request_id: str) -> None:
        principal.check_verb(Verb.DELETE_MIX)
        author = principal.author(request_id)
        await asyncio.to_thread(self.mixes.delete, name, author, principal.may_use_mix)

    async def _load(self, tenant: Tenant, name: str, allows: Allows) -> TaskStatus:
        """Load a task within what the tenant may have loaded.

        What it takes is known when it is there; the bank's own figure is close, and spares a load.
        """
        before = self.tasks.status(name)
        is_new = not before.is_served
        if is_new and allows(name):
            self.loads.check(tenant, before)
        status = await self.tasks.load(name, allows)
        if is_new:
            try:
                self.loads.check(tenant, status)
            except ResourceExhaustedError:
                await self.tasks.unload(name)
                raise
        if is_new or status.digest != before.digest:
            self.loads.note(tenant, name)
        return status

    async def _change_task(
        self,
        principal: Principal,
        verb: Verb,
        name: str,
        request_id: str,
        change: Callable[[str, Allows], Awaitable[TaskStatus]],
    ) -> TaskStatus:
        """Change a task and write it down before the answer, also for a caller that has left."""

        async def whole() -> TaskStatus:
            before = self._state(name)
            status = await change(name, principal.may_use_task)
            written = Change(verb, name, before, self._state(name))
            await asyncio.to_thread(self.audit.write, principal.author(request_id), written)
            return status

        return await self.changes.run(whole)

    def _state(self, name: str) -> State:
        status = self.tasks.status(name)
        return {"state": status.state.value, "digest": status.digest}

    def _described(self, record: NamedMixRecord) -> DescribedMix:
        try:
            digest = self.variants.resolve(record.mix).digest
        except (NotFoundError, ComposerError):
            digest = ""
        return DescribedMix(record, digest)
