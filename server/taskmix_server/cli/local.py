"""Administration of a state directory that no server uses, with the methods of a client."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from taskmix_client import ApiKey, AuditRecord, NewKey, Tenant, TenantLimits
from taskmix_server.database import Database, state_in_use
from taskmix_server.errors import InvalidRequestError
from taskmix_server.tenancy import tenant as domain
from taskmix_server.tenancy.audit import AuditLog, Author
from taskmix_server.tenancy.store import TenantStore

OPERATOR = Author("(operator)", "", "")
"""Who has the state directory needs no key; no tenant can be named so."""


class LocalAdmin:
    """Tenants, keys and changes in a database. Methods and values are those of `Client`."""

    def __init__(self, database: Database) -> None:
        self._store = TenantStore(database)
        self._log = AuditLog(database)

    def tenants(self) -> tuple[Tenant, ...]:
        return tuple(map(_shown, self._store.tenants()))

    def create_tenant(self, tenant: Tenant) -> Tenant:
        return _shown(self._store.create(_checked(tenant), OPERATOR))

    def update_tenant(self, tenant: Tenant) -> Tenant:
        return _shown(self._store.update(_checked(tenant), OPERATOR))

    def delete_tenant(self, name: str) -> None:
        self._store.delete(name, OPERATOR)

    def keys(self, tenant: str = "") -> tuple[ApiKey, ...]:
        return tuple(ApiKey(**asdict(key)) for key in self._store.keys(tenant))

    def create_key(self, tenant: str, expires_at: datetime | None = None) -> NewKey:
        key, secret = self._store.create_key(tenant, expires_at, OPERATOR)
        return NewKey(ApiKey(**asdict(key)), secret.text)

    def revoke_key(self, key_id: str) -> ApiKey:
        return ApiKey(**asdict(self._store.revoke_key(key_id, OPERATOR)))

    def audit(self, limit: int = 100, before_id: int | None = None) -> tuple[AuditRecord, ...]:
        return tuple(
            AuditRecord(
                id=record.id, at=record.at, **asdict(record.author), **asdict(record.change)
            )
            for record in self._log.latest(limit, before_id)
        )


@contextmanager
def opened(state: Path) -> Iterator[LocalAdmin]:
    """The administration of a state directory, alone on it for the block."""
    with state_in_use(state, alone=True):
        database = Database.at(state)
        try:
            yield LocalAdmin(database)
        finally:
            database.close()


def _shown(tenant: domain.Tenant) -> Tenant:
    fields = {**asdict(tenant), "limits": TenantLimits(**asdict(tenant.limits))}
    del fields["id"]
    return Tenant(**fields)


def _checked(tenant: Tenant) -> domain.Tenant:
    fields = asdict(tenant)
    try:
        fields["role"] = domain.Role(tenant.role)
        fields["verbs"] = tuple(map(domain.Verb, tenant.verbs))
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error
    fields["limits"] = domain.Limits(**fields["limits"])
    return domain.Tenant(**fields)
