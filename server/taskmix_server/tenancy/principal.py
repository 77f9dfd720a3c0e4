"""A tenant in the act of calling: what it may use, and as whom its changes are written down."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from taskmix_composer.mix import Mix, Term
from taskmix_composer.recipe import Recipe
from taskmix_server.errors import PermissionDeniedError
from taskmix_server.tenancy.audit import Author
from taskmix_server.tenancy.tenant import Role, Tenant, Verb, matches


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a call, by which key."""

    tenant: Tenant
    key_id: str = ""

    @property
    def name(self) -> str:
        return self.tenant.name

    @property
    def cache_salt(self) -> str | None:
        """What keeps keys and values apart from other tenants' in vLLM's prefix cache.

        It follows the tenant's id: a tenant that is created again under an old name finds nothing.
        """
        if not self.tenant.id:
            return None
        return hashlib.blake2b(self.tenant.id.encode(), digest_size=16).hexdigest()

    def author(self, request_id: str) -> Author:
        return Author(self.name, self.key_id, request_id)

    def may_use_task(self, name: str) -> bool:
        return self.tenant.is_admin or matches(name, self.tenant.tasks)

    def may_use_mix(self, name: str, mix: Mix) -> bool:
        """Whether a named mix exists for this tenant: its name and all its tasks are allowed."""
        return self.may_name_mix(name) and all(map(self.may_use_task, mix.tasks))

    def may_name_mix(self, name: str) -> bool:
        return self.tenant.is_admin or matches(name, self.tenant.mixes)

    def check_verb(self, verb: Verb) -> None:
        if not self.tenant.is_admin and verb not in self.tenant.verbs:
            raise PermissionDeniedError(
                f"tenant {self.name!r} may not do {verb}; ask an admin for it, or to do it"
            )

    def check_admin(self) -> None:
        if not self.tenant.is_admin:
            raise PermissionDeniedError(f"tenant {self.name!r} is not an admin")

    def check_written(self, mix: Mix | Recipe) -> None:
        """Refuse a mix that this tenant may not write, whatever tasks there are."""
        if self.tenant.is_admin:
            return
        if not self.tenant.may_inline and not _is_plain(mix):
            raise PermissionDeniedError(
                f"tenant {self.name!r} may not write mixes; name a task or a registered mix"
            )
        if isinstance(mix, Mix) and not self.tenant.may_negative and _is_negative(mix):
            raise PermissionDeniedError(
                f"tenant {self.name!r} may not use negative coefficients; leave them out"
            )


DEFAULT = Principal(Tenant("default", Role.ADMIN))
"""Everybody, where no tenants are configured."""


def _is_plain(mix: Mix | Recipe) -> bool:
    """Whether it is the base, or one task as it is."""
    if isinstance(mix, Recipe):
        return False
    return mix.is_base or mix == Mix.of({mix.terms[0].task: 1.0})


def _is_negative(mix: Mix) -> bool:
    return any(number < 0.0 for term in mix.terms for number in _numbers(term))


def _numbers(term: Term) -> Iterable[float]:
    yield term.coefficient
    yield from (number for _, number in term.by_layer)
    yield from (number for _, number in term.by_tensor)
