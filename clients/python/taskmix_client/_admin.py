"""What both clients share about tenants: reading and writing messages. No I/O."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from taskmix.v1 import admin_pb2
from taskmix_client.errors import InvalidArgumentError
from taskmix_client.tenants import ApiKey, AuditRecord, NewKey, Tenant, TenantLimits

ROLES: Mapping[str, "admin_pb2.Role.ValueType"] = {
    "admin": admin_pb2.ROLE_ADMIN,
    "user": admin_pb2.ROLE_USER,
}


def from_tenant(tenant: Tenant) -> admin_pb2.Tenant:
    """Build the message; anything it cannot say is an InvalidArgumentError."""
    if tenant.role not in ROLES:
        raise InvalidArgumentError(f"role must be admin or user, got {tenant.role!r}")
    limits = {name: value for name, value in asdict(tenant.limits).items() if value is not None}
    try:
        return admin_pb2.Tenant(
            name=tenant.name,
            role=ROLES[tenant.role],
            tasks=tenant.tasks,
            mixes=tenant.mixes,
            verbs=tenant.verbs,
            may_inline=tenant.may_inline,
            may_negative=tenant.may_negative,
            limits=admin_pb2.TenantLimits(**limits),
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(str(error)) from error


def to_tenant(message: admin_pb2.Tenant) -> Tenant:
    """Read a tenant."""
    limits: dict[str, Any] = {field.name: value for field, value in message.limits.ListFields()}
    roles = {number: role for role, number in ROLES.items()}
    return Tenant(
        name=message.name,
        role=roles.get(message.role, "unknown"),
        tasks=tuple(message.tasks),
        mixes=tuple(message.mixes),
        verbs=tuple(message.verbs),
        may_inline=message.may_inline,
        may_negative=message.may_negative,
        limits=TenantLimits(**limits),
    )


def to_key_request(tenant: str, expires_at: datetime | None) -> admin_pb2.CreateKeyRequest:
    """Build the request; a moment without a zone is an InvalidArgumentError."""
    request = admin_pb2.CreateKeyRequest(tenant=tenant)
    if expires_at is not None:
        if expires_at.tzinfo is None:
            raise InvalidArgumentError("expires_at needs a zone, such as datetime.UTC")
        request.expires_at.FromDatetime(expires_at)
    return request


def to_key(message: admin_pb2.ApiKey) -> ApiKey:
    """Read a key."""
    expires = message.expires_at if message.HasField("expires_at") else None
    revoked = message.revoked_at if message.HasField("revoked_at") else None
    return ApiKey(
        id=message.id,
        tenant=message.tenant,
        created_at=_moment(message.created_at),
        expires_at=_moment(expires) if expires else None,
        revoked_at=_moment(revoked) if revoked else None,
    )


def to_new_key(response: admin_pb2.CreateKeyResponse) -> NewKey:
    """Read a key that was just made."""
    return NewKey(to_key(response.key), response.secret)


def to_audit_record(message: admin_pb2.AuditRecord) -> AuditRecord:
    """Read a change."""
    return AuditRecord(
        id=message.id,
        at=_moment(message.at),
        tenant=message.tenant,
        key_id=message.key_id,
        request_id=message.request_id,
        verb=message.verb,
        subject=message.subject,
        before=json.loads(message.before_json) if message.before_json else None,
        after=json.loads(message.after_json) if message.after_json else None,
    )


def _moment(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)
