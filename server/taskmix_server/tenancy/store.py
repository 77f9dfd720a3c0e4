"""Tenants and keys in the database; every change with its line in the audit log."""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from taskmix_server.database import Database
from taskmix_server.database.models import ApiKeyRow, TenantRow
from taskmix_server.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
)
from taskmix_server.tenancy import audit, keys
from taskmix_server.tenancy.audit import Author, Change, State
from taskmix_server.tenancy.keys import ApiKey, Secret
from taskmix_server.tenancy.tenant import Limits, Role, Tenant, Verb


class TenantStore:
    """The tables of tenants and keys. Calls block; run them off the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def is_empty(self) -> bool:
        """Whether no tenant was ever created, or all of them were deleted."""
        with self._database.reading() as session:
            return not session.scalar(select(func.count()).select_from(TenantRow))

    def tenants(self) -> list[Tenant]:
        """Every tenant, by name."""
        with self._database.reading() as session:
            rows = session.scalars(select(TenantRow).order_by(TenantRow.name))
            return [_tenant_of(row) for row in rows]

    def create(self, tenant: Tenant, author: Author) -> Tenant:
        """Add a tenant under a new id. The first one must be an admin."""
        created = replace(tenant, id=uuid.uuid4().hex)
        with self._database.writing() as session:
            if _find(session, tenant.name) is not None:
                raise AlreadyExistsError(
                    f"tenant {tenant.name!r} exists; change it with `taskmix tenants update`"
                )
            row = TenantRow(id=created.id, name=created.name)
            _write(row, created)
            session.add(row)
            _check_admin_is_left(session)
            change = Change("tenants.create", created.name, None, state_of(created))
            audit.record(session, author, change)
        return created

    def update(self, tenant: Tenant, author: Author) -> Tenant:
        """Replace all rights and limits of the tenant of this name."""
        with self._database.writing() as session:
            row = _get(session, tenant.name)
            before = state_of(_tenant_of(row))
            _write(row, tenant)
            _check_admin_is_left(session)
            changed = _tenant_of(row)
            change = Change("tenants.update", tenant.name, before, state_of(changed))
            audit.record(session, author, change)
        return changed

    def delete(self, name: str, author: Author) -> None:
        """Remove a tenant and its keys."""
        with self._database.writing() as session:
            row = _get(session, name)
            before = state_of(_tenant_of(row))
            session.execute(delete(ApiKeyRow).where(ApiKeyRow.tenant_id == row.id))
            session.delete(row)
            _check_admin_is_left(session, may_be_empty=True)
            audit.record(session, author, Change("tenants.delete", name, before, None))

    def keys(self, tenant: str = "") -> list[ApiKey]:
        """The keys of a tenant, or of all, oldest first."""
        query = select(ApiKeyRow, TenantRow).join(TenantRow, TenantRow.id == ApiKeyRow.tenant_id)
        with self._database.reading() as session:
            if tenant:
                query = query.where(TenantRow.id == _get(session, tenant).id)
            rows = session.execute(query.order_by(ApiKeyRow.created_at, ApiKeyRow.id))
            return [_key_of(row[0], row[1]) for row in rows]

    def create_key(
        self, tenant: str, expires_at: datetime | None, author: Author
    ) -> tuple[ApiKey, Secret]:
        """Give a tenant a key. The secret is not kept."""
        now = datetime.now(UTC)
        if expires_at is not None and expires_at <= now:
            raise InvalidRequestError(f"the key would have expired at {expires_at.isoformat()}")
        secret = keys.make()
        with self._database.writing() as session:
            owner = _get(session, tenant)
            row = ApiKeyRow(
                id=secret.id,
                tenant_id=owner.id,
                hash=secret.hash,
                created_at=now,
                expires_at=expires_at,
            )
            session.add(row)
            made = _key_of(row, owner)
            audit.record(session, author, Change("keys.create", made.id, None, key_state(made)))
        return made, secret

    def revoke_key(self, key_id: str, author: Author) -> ApiKey:
        """End a key. Repeating it is harmless."""
        with self._database.writing() as session:
            row = session.get(ApiKeyRow, key_id)
            owner = session.get(TenantRow, row.tenant_id) if row else None
            if row is None or owner is None:
                raise NotFoundError(f"no key is {key_id!r:.80}; `taskmix keys list` shows them")
            before = _key_of(row, owner)
            if before.revoked_at is not None:
                return before
            row.revoked_at = datetime.now(UTC)
            after = _key_of(row, owner)
            change = Change("keys.revoke", key_id, key_state(before), key_state(after))
            audit.record(session, author, change)
        return after

    def find_key(self, key_id: str) -> tuple[ApiKey, str, Tenant] | None:
        """A key, its hash and its tenant, or None."""
        with self._database.reading() as session:
            row = session.get(ApiKeyRow, key_id)
            owner = session.get(TenantRow, row.tenant_id) if row else None
            if row is None or owner is None:
                return None
            return _key_of(row, owner), row.hash, _tenant_of(owner)


def state_of(tenant: Tenant) -> State:
    """A tenant as JSON."""
    return asdict(tenant)


def key_state(key: ApiKey) -> State:
    """A key as JSON, with its moments as text."""
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in asdict(key).items()
    }


def _find(session: Session, name: str) -> TenantRow | None:
    return session.scalars(select(TenantRow).where(TenantRow.name == name)).one_or_none()


def _get(session: Session, name: str) -> TenantRow:
    row = _find(session, name)
    if row is None:
        raise NotFoundError(f"no tenant is named {name!r:.80}; `taskmix tenants list` shows them")
    return row


def _check_admin_is_left(session: Session, *, may_be_empty: bool = False) -> None:
    """Keys are asked for as soon as there are tenants: somebody must be able to administer."""
    roles: Sequence[str] = session.scalars(select(TenantRow.role)).all()
    if Role.ADMIN not in roles and not (may_be_empty and not roles):
        raise FailedPreconditionError(
            "this would leave tenants without an admin; create one first, with --role admin"
        )


def _write(row: TenantRow, tenant: Tenant) -> None:
    row.role = tenant.role
    row.tasks = list(tenant.tasks)
    row.mixes = list(tenant.mixes)
    row.verbs = list(tenant.verbs)
    row.may_inline = tenant.may_inline
    row.may_negative = tenant.may_negative
    row.limits = asdict(tenant.limits)


def _tenant_of(row: TenantRow) -> Tenant:
    return Tenant(
        name=row.name,
        role=Role(row.role),
        tasks=tuple(row.tasks),
        mixes=tuple(row.mixes),
        verbs=tuple(Verb(verb) for verb in row.verbs),
        may_inline=row.may_inline,
        may_negative=row.may_negative,
        limits=Limits(**row.limits),
        id=row.id,
    )


def _key_of(row: ApiKeyRow, owner: TenantRow) -> ApiKey:
    return ApiKey(row.id, owner.name, row.created_at, row.expires_at, row.revoked_at)
