"""What a request may name, and the mix that it means."""

import asyncio
from dataclasses import dataclass

from taskmix_composer.mix import Mix, Term
from taskmix_composer.recipe import Recipe, parse_mix
from taskmix_server.domain.generation import ExperimentTarget, NamedMix, Target
from taskmix_server.runtime.experiments.arms import Assigned
from taskmix_server.runtime.experiments.running import Experiments
from taskmix_server.runtime.mixes import NamedMixStore, is_name
from taskmix_server.runtime.recipes import RecipeExpander
from taskmix_server.telemetry.labels import BASE, INLINE
from taskmix_server.tenancy.principal import Principal


@dataclass(frozen=True, slots=True)
class Targets:
    """Named mixes, experiments, and what callers write themselves."""

    recipes: RecipeExpander
    mixes: NamedMixStore
    experiments: Experiments

    async def find(self, model: str, base_name: str, principal: Principal) -> Target:
        """What an OpenAI `model` name means: base, registered mix, experiment, or expression.

        The database is asked about what can be a registered name alone: mixes that a request
        brings along do without it.
        """
        if model in (base_name, "base"):
            return Mix()
        if is_name(model) and await self._is_registered(model, principal):
            return NamedMix(model)
        if model.startswith("experiment:"):
            return ExperimentTarget(model.removeprefix("experiment:"), subject="")
        return parse_mix(model)

    async def resolve(
        self, target: Target, principal: Principal, request_id: str
    ) -> tuple[Mix, Assigned | None]:
        """The mix of a target, and the arm if an experiment has chosen it.

        Raises PermissionDeniedError for what the caller may not write; what it may not use is as
        unknown as what is not there.
        """
        match target:
            case NamedMix(name):
                record = await asyncio.to_thread(self.mixes.get, name, principal.may_use_mix)
                return record.mix, None
            case ExperimentTarget(name, subject):
                assigned = await self.experiments.assign(name, subject, request_id, principal)
                return assigned.mix, assigned
            case Mix() | Recipe():
                principal.check_written(target)
                mix = await self.recipes.expand(target, principal.may_use_task)
                principal.check_written(mix)  # a method may come to negative coefficients
                return mix, None

    async def _is_registered(self, name: str, principal: Principal) -> bool:
        found = await asyncio.to_thread(self.mixes.find, name, principal.may_use_mix)
        return found is not None


def mix_label(target: Target, mix: Mix) -> str:
    """What stands for a mix in labels: its registered name, its task if it is that and no more."""
    if isinstance(target, NamedMix):
        return target.name
    if mix.is_base:
        return BASE
    is_task = mix.terms == (Term(mix.tasks[0]),)
    return mix.tasks[0] if is_task else INLINE
