"""Experiments as callers write them, and what becomes of their mixes."""

import asyncio
from dataclasses import dataclass

from taskmix_composer.mix import Mix
from taskmix_composer.recipe import Recipe
from taskmix_server.domain.generation import NamedMix
from taskmix_server.errors import FailedPreconditionError, PermissionDeniedError
from taskmix_server.experiments.design import Arm, Design, Shadow
from taskmix_server.experiments.guardrail import Rule
from taskmix_server.runtime.mixes import NamedMixStore
from taskmix_server.runtime.recipes import RecipeExpander
from taskmix_server.runtime.variants import VariantCache
from taskmix_server.tenancy.principal import Principal


@dataclass(frozen=True, slots=True)
class Candidate:
    """A mix that an experiment shall compare, as a caller writes it. part: its share or rate."""

    name: str
    source: Mix | Recipe | NamedMix
    part: float


@dataclass(frozen=True, slots=True)
class Draft:
    """An experiment as a caller writes it; see `Design`. ramp: in percent."""

    name: str
    arms: tuple[Candidate, ...]
    salt: str = ""
    shadows: tuple[Candidate, ...] = ()
    tenants: tuple[str, ...] = ()
    overrides: tuple[tuple[str, str], ...] = ()
    guardrails: tuple[Rule, ...] = ()
    ramp: float = 100.0


@dataclass(frozen=True, slots=True)
class Mixes:
    """Finds the mixes of drafts, and pins them to the content that their tasks have."""

    variants: VariantCache
    recipes: RecipeExpander
    named: NamedMixStore

    async def designed(self, principal: Principal, draft: Draft) -> Design:
        """A draft's design, of mixes that the caller may write and that can be served now."""
        own = ("*",) if principal.tenant.is_admin else (principal.name,)
        tenants = draft.tenants or own
        if not principal.tenant.is_admin and tenants != own:
            raise PermissionDeniedError(
                f"tenant {principal.name!r} may make experiments for itself alone; leave the "
                "tenants out, or ask an admin"
            )
        arms = [Arm(c.name, *await self._pinned(principal, c), c.part) for c in draft.arms]
        shadows = [Shadow(c.name, *await self._pinned(principal, c), c.part) for c in draft.shadows]
        return Design(
            name=draft.name,
            arms=tuple(arms),
            salt=draft.salt,
            shadows=tuple(shadows),
            tenants=tenants,
            overrides=draft.overrides,
            guardrails=draft.guardrails,
        )

    def check_pinned(self, principal: Principal, arm: Arm | Shadow) -> None:
        """Refuse a mix whose tasks have other content now than when they were pinned."""
        now = self.variants.resolve(arm.mix, principal.may_use_task).digest
        if now != arm.mix_digest:
            raise FailedPreconditionError(
                f"arm {arm.name!r} is {arm.mix}, and a task of it has changed since the experiment "
                "was made; create a new version with `--new-version`"
            )

    async def _pinned(self, principal: Principal, candidate: Candidate) -> tuple[Mix, str]:
        """A candidate's mix and its digest now."""
        source = candidate.source
        if isinstance(source, NamedMix):
            named, sees = self.named, principal.may_use_mix
            mix = (await asyncio.to_thread(named.get, source.name, sees)).mix
        else:
            principal.check_written(source)
            mix = await self.recipes.expand(source, principal.may_use_task)
            principal.check_written(mix)  # a method may come to negative coefficients
        return mix, self.variants.resolve(mix, principal.may_use_task).digest
