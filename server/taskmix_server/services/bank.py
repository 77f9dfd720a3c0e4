"""Administration of tasks and named mixes."""

import asyncio
from dataclasses import dataclass

from taskmix_composer.errors import ComposerError
from taskmix_composer.mix import Mix
from taskmix_composer.recipe import Recipe
from taskmix_server.errors import NotFoundError
from taskmix_server.runtime.mixes import NamedMixRecord, NamedMixStore
from taskmix_server.runtime.recipes import RecipeExpander
from taskmix_server.runtime.tasks import TaskRegistry, TaskStatus
from taskmix_server.runtime.variants import VariantCache


@dataclass(frozen=True, slots=True)
class DescribedMix:
    """A named mix; its digest is empty while a task it names is not loaded."""

    record: NamedMixRecord
    digest: str


@dataclass(frozen=True, slots=True)
class BankService:
    """The admin verbs on the served bank."""

    tasks: TaskRegistry
    variants: VariantCache
    recipes: RecipeExpander
    mixes: NamedMixStore

    @property
    def revision(self) -> str:
        """The revision of the bank that was read last."""
        return self.tasks.bank.revision

    def list_tasks(self) -> list[TaskStatus]:
        return self.tasks.statuses()

    async def load_task(self, name: str) -> TaskStatus:
        return await self.tasks.load(name)

    async def unload_task(self, name: str) -> TaskStatus:
        return await self.tasks.unload(name)

    async def register_mix(self, name: str, wanted: Mix | Recipe) -> DescribedMix:
        """Name a mix that can be served now; NotFoundError if a task it names is not loaded.

        A recipe is expanded once: the name keeps its terms, whatever the bank becomes.
        """
        mix = await self.recipes.expand(wanted)
        self.variants.resolve(mix)
        return self._described(await asyncio.to_thread(self.mixes.register, name, mix))

    async def list_mixes(self) -> list[DescribedMix]:
        return [self._described(record) for record in await asyncio.to_thread(self.mixes.all)]

    async def delete_mix(self, name: str) -> None:
        await asyncio.to_thread(self.mixes.delete, name)

    def _described(self, record: NamedMixRecord) -> DescribedMix:
        try:
            digest = self.variants.resolve(record.mix).digest
        except (NotFoundError, ComposerError):
            digest = ""
        return DescribedMix(record, digest)
