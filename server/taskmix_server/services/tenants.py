"""Administration of tenants and keys."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from taskmix_server.errors import FailedPreconditionError
from taskmix_server.runtime.changes import Changes
from taskmix_server.tenancy.audit import AuditLog, AuditRecord
from taskmix_server.tenancy.authenticator import Authenticator
from taskmix_server.tenancy.keys import ApiKey, Secret
from taskmix_server.tenancy.principal import Principal
from taskmix_server.tenancy.store import TenantStore
from taskmix_server.tenancy.tenant import Tenant

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class TenantService:
    """The verbs on tenants, keys and the audit log, for admins alone."""

    store: TenantStore
    audit: AuditLog
    authenticator: Authenticator
    changes: Changes

    async def tenants(self, principal: Principal) -> list[Tenant]:
        principal.check_admin()
        return await asyncio.to_thread(self.store.tenants)

    async def create(self, principal: Principal, tenant: Tenant, request_id: str) -> Tenant:
        self._check_not_open()
        author = principal.author(request_id)
        return await self._change(principal, lambda: self.store.create(tenant, author))

    async def update(self, principal: Principal, tenant: Tenant, request_id: str) -> Tenant:
        author = principal.author(request_id)
        return await self._change(principal, lambda: self.store.update(tenant, author))

    async def delete(self, principal: Principal, name: str, request_id: str) -> None:
        author = principal.author(request_id)
        await self._change(principal, lambda: self.store.delete(name, author))

    async def keys(self, principal: Principal, tenant: str = "") -> list[ApiKey]:
        principal.check_admin()
        return await asyncio.to_thread(self.store.keys, tenant)

    async def create_key(
        self, principal: Principal, tenant: str, expires_at: datetime | None, request_id: str
    ) -> tuple[ApiKey, Secret]:
        author = principal.author(request_id)
        make = lambda: self.store.create_key(tenant, expires_at, author)  # noqa: E731 - one use
        return await self._change(principal, make)

    async def revoke_key(self, principal: Principal, key_id: str, request_id: str) -> ApiKey:
        author = principal.author(request_id)
        return await self._change(principal, lambda: self.store.revoke_key(key_id, author))

    async def latest_changes(
        self, principal: Principal, limit: int, before_id: int | None
    ) -> list[AuditRecord]:
        principal.check_admin()
        return await asyncio.to_thread(self.audit.latest, limit, before_id)

    async def _change(self, principal: Principal, change: Callable[[], ResultT]) -> ResultT:
        """Make a change to its end, and let no key be remembered from before it."""
        principal.check_admin()

        async def whole() -> ResultT:
            try:
                return await asyncio.to_thread(change)
            finally:
                self.authenticator.forget()

        return await self.changes.run(whole)

    def _check_not_open(self) -> None:
        if self.authenticator.is_open:
            raise FailedPreconditionError(
                "this server was started without tenants and asks nobody for a key; stop it, "
                "create the first tenant with `taskmix tenants create --state DIR`, and start it"
            )
