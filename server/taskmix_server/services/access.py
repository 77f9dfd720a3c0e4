"""Admission of calls: who makes one, and whether the rules let it through."""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from taskmix_server.errors import ServingError
from taskmix_server.tenancy.authenticator import Authenticator
from taskmix_server.tenancy.principal import DEFAULT, Principal
from taskmix_server.tenancy.rules import RULES, Access
from taskmix_server.tenancy.tenant import Verb


@dataclass(frozen=True, slots=True)
class AccessService:
    """What both edges ask before they do anything for a call.

    open_calls: calls that the operator opened to anybody, whatever the rules say. tell_denial: is
    told the name of the error that turned a call away.
    """

    authenticator: Authenticator
    open_calls: Collection[str] = ()
    tell_denial: Callable[[str], None] = lambda _: None

    async def admit(self, call: str, key: str | None) -> Principal:
        """Who makes a call, or UnauthenticatedError or PermissionDeniedError.

        What is not served has no rule: only who has a key may learn that.
        """
        try:
            return await self._admitted(call, key)
        except ServingError as error:
            self.tell_denial(type(error).__name__)
            raise

    async def _admitted(self, call: str, key: str | None) -> Principal:
        rule = Access.OPEN if call in self.open_calls else RULES.get(call, Access.KEY)
        if rule is Access.OPEN:
            return DEFAULT
        principal = await self.authenticator.principal(key)
        if isinstance(rule, Verb):
            principal.check_verb(rule)
        elif rule is Access.ADMIN:
            principal.check_admin()
        return principal


def bearer_key(header: str | None) -> str | None:
    """The key of an authorization header, `Bearer KEY`; None without one."""
    scheme, _, key = (header or "").strip().partition(" ")
    return key.strip() if scheme.lower() == "bearer" and key.strip() else None
