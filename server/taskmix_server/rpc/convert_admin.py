"""Messages about tenants, keys and changes to values and back."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from taskmix.v1 import admin_pb2 as pb
from taskmix_server.errors import InvalidRequestError
from taskmix_server.tenancy.audit import AuditRecord, State
from taskmix_server.tenancy.keys import ApiKey
from taskmix_server.tenancy.tenant import Limits, Role, Tenant, Verb

_ROLES: Mapping[Role, pb.Role.ValueType] = {Role.ADMIN: pb.ROLE_ADMIN, Role.USER: pb.ROLE_USER}
_ROLE_OF = {message: role for role, message in _ROLES.items()}


def to_tenant(message: pb.Tenant) -> Tenant:
    """Raises InvalidRequestError."""
    role = _ROLE_OF.get(message.role)
    if role is None:
        raise InvalidRequestError("the tenant has no role; set admin or user")
    return Tenant(
        name=message.name,
        role=role,
        tasks=tuple(message.tasks),
        mixes=tuple(message.mixes),
        verbs=tuple(map(_to_verb, message.verbs)),
        may_inline=message.may_inline,
        may_negative=message.may_negative,
        limits=Limits(**{field.name: value for field, value in message.limits.ListFields()}),
    )


def to_tenant_message(tenant: Tenant) -> pb.Tenant:
    limits: dict[str, Any] = {
        name: getattr(tenant.limits, name)
        for name in Limits.__dataclass_fields__
        if getattr(tenant.limits, name) is not None
    }
    return pb.Tenant(
        name=tenant.name,
        role=_ROLES[tenant.role],
        tasks=tenant.tasks,
        mixes=tenant.mixes,
        verbs=tenant.verbs,
        may_inline=tenant.may_inline,
        may_negative=tenant.may_negative,
        limits=pb.TenantLimits(**limits),
    )


def to_key_message(key: ApiKey) -> pb.ApiKey:
    return pb.ApiKey(
        id=key.id,
        tenant=key.tenant,
        created_at=_timestamp(key.created_at),
        expires_at=_timestamp(key.expires_at),
        revoked_at=_timestamp(key.revoked_at),
    )


def to_audit_message(record: AuditRecord) -> pb.AuditRecord:
    return pb.AuditRecord(
        id=record.id,
        at=_timestamp(record.at),
        tenant=record.author.tenant,
        key_id=record.author.key_id,
        request_id=record.author.request_id,
        verb=record.change.verb,
        subject=record.change.subject,
        before_json=_json(record.change.before),
        after_json=_json(record.change.after),
    )


def to_expiry(message: pb.CreateKeyRequest) -> datetime | None:
    """Raises InvalidRequestError."""
    if not message.HasField("expires_at"):
        return None
    try:
        return message.expires_at.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"expires_at is not a moment: {error}") from error


def _to_verb(text: str) -> Verb:
    try:
        return Verb(text)
    except ValueError as error:
        raise InvalidRequestError(
            f"{text!r:.80} is not a verb; those are {', '.join(Verb)}"
        ) from error


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def _json(state: State | None) -> str:
    return "" if state is None else json.dumps(state, sort_keys=True)
