"""Merge methods expanded over the served bank."""

import asyncio

from taskmix_composer.bank import Bank
from taskmix_composer.mix import Mix
from taskmix_composer.recipe import Geometry, Recipe, expand
from taskmix_server.errors import FailedPreconditionError
from taskmix_server.runtime.tasks import Allows, TaskRegistry, check_known, everything


class RecipeExpander:
    """Expands recipes; keeps the Gram table of the bank's last revision. One event loop only."""

    def __init__(self, tasks: TaskRegistry) -> None:
        self._tasks = tasks
        self._revision = ""
        self._geometry: Geometry | None = None

    async def expand(self, wanted: Mix | Recipe, allows: Allows = everything) -> Mix:
        """A mix as it is, or the one that a recipe stands for now.

        Raises UnknownTaskError or NotFoundError for a task that is not there, MissingGramError, or
        FailedPreconditionError if what is served is not what was measured.
        """
        if isinstance(wanted, Mix):
            return wanted
        bank = self._tasks.bank
        check_known(wanted.tasks, bank.entries, allows)
        mix = await asyncio.to_thread(expand, wanted, await self._geometry_of(bank))
        if wanted.is_measured:
            self._check_measured(mix, bank)
        return mix

    async def _geometry_of(self, bank: Bank) -> Geometry:
        if self._geometry is None or self._revision != bank.revision:
            geometry = await asyncio.to_thread(Geometry.of, bank)
            self._revision, self._geometry = bank.revision, geometry
            return geometry
        return self._geometry

    def _check_measured(self, mix: Mix, bank: Bank) -> None:
        """Refuse coefficients that were computed from other content than a task now means."""
        for task, digest in self._tasks.digests(mix).items():
            if bank.entry_digests.get(task) != digest:
                raise FailedPreconditionError(
                    f"task {task!r} is served as it was before the bank changed, and the bank's "
                    f"table of inner products is of its new content; `taskmix tasks load {task}` "
                    "serves that"
                )
