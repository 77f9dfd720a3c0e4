"""Tenants, keys and the audit log through both clients."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from taskmix.v1 import admin_pb2 as pb
from taskmix_client import (
    ApiKey,
    AuditRecord,
    Client,
    InvalidArgumentError,
    NewKey,
    Tenant,
    TenantLimits,
)
from taskmix_client.config import REPEATABLE, ClientConfig
from tests.unit.client.scripted import Script

BOB = Tenant(
    "bob",
    tasks=("law*",),
    mixes=("bob-*",),
    verbs=("tasks.load",),
    may_inline=True,
    limits=TenantLimits(requests_per_s=2.5, max_resident_bytes=2**40),
)
BOB_MESSAGE = pb.Tenant(
    name="bob",
    role=pb.ROLE_USER,
    tasks=["law*"],
    mixes=["bob-*"],
    verbs=["tasks.load"],
    may_inline=True,
    limits=pb.TenantLimits(requests_per_s=2.5, max_resident_bytes=2**40),
)
MOMENT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
KEY = ApiKey("0123", "bob", MOMENT, None, None)


def stamp(moment: datetime = MOMENT) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


KEY_MESSAGE = pb.ApiKey(id="0123", tenant="bob", created_at=stamp())


def test_tenants(client: Any, script: Script) -> None:
    script.answer("ListTenants", lambda *_: pb.ListTenantsResponse(tenants=[BOB_MESSAGE]))
    script.answer("CreateTenant", lambda *_: pb.CreateTenantResponse(tenant=BOB_MESSAGE))
    script.answer("UpdateTenant", lambda *_: pb.UpdateTenantResponse(tenant=BOB_MESSAGE))
    script.answer("DeleteTenant", lambda *_: pb.DeleteTenantResponse())
    assert client.tenants() == (BOB,)
    assert client.create_tenant(BOB) == client.update_tenant(BOB) == BOB
    client.delete_tenant("bob")
    assert script.requests == [
        pb.ListTenantsRequest(),
        pb.CreateTenantRequest(tenant=BOB_MESSAGE),
        pb.UpdateTenantRequest(tenant=BOB_MESSAGE),
        pb.DeleteTenantRequest(name="bob"),
    ]


def test_keys(client: Any, script: Script) -> None:
    revoked = pb.ApiKey(
        id="0123", tenant="bob", created_at=stamp(), expires_at=stamp(), revoked_at=stamp()
    )
    script.answer("ListKeys", lambda *_: pb.ListKeysResponse(keys=[KEY_MESSAGE]))
    script.answer("CreateKey", lambda *_: pb.CreateKeyResponse(key=KEY_MESSAGE, secret="s3"))
    script.answer("RevokeKey", lambda *_: pb.RevokeKeyResponse(key=revoked))
    assert client.keys() == client.keys("bob") == (KEY,)
    made = client.create_key("bob", MOMENT)
    assert made == NewKey(KEY, "s3")
    assert "s3" not in repr(made)
    client.create_key("bob")
    assert client.revoke_key("0123") == ApiKey("0123", "bob", MOMENT, MOMENT, MOMENT)
    assert script.requests == [
        pb.ListKeysRequest(),
        pb.ListKeysRequest(tenant="bob"),
        pb.CreateKeyRequest(tenant="bob", expires_at=stamp()),
        pb.CreateKeyRequest(tenant="bob"),
        pb.RevokeKeyRequest(id="0123"),
    ]


def test_audit(client: Any, script: Script) -> None:
    message = pb.AuditRecord(
        id=7,
        at=stamp(),
        tenant="ops",
        key_id="0123",
        request_id="r",
        verb="mixes.register",
        subject="prod",
        after_json='{"mix": 1}',
    )
    script.answer("ListAudit", lambda *_: pb.ListAuditResponse(records=[message]))
    expected = AuditRecord(
        7, MOMENT, "ops", "0123", "r", "mixes.register", "prod", None, {"mix": 1}
    )
    assert client.audit() == client.audit(5, before_id=9) == (expected,)
    assert script.requests == [
        pb.ListAuditRequest(limit=100),
        pb.ListAuditRequest(limit=5, before_id=9),
    ]


@pytest.mark.parametrize(
    "tenant", [Tenant("bob", role="root"), Tenant("bob", limits=TenantLimits(max_queued=2**40))]
)
def test_what_a_message_cannot_say(client: Any, tenant: Tenant) -> None:
    with pytest.raises(InvalidArgumentError):
        client.create_tenant(tenant)


def test_a_moment_needs_a_zone(client: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="zone"):
        client.create_key("bob", MOMENT.replace(tzinfo=None))


def test_a_key_is_made_once() -> None:
    """A repeated one would make two, and a repeated DeleteTenant report NOT_FOUND."""
    methods = {method.name for method in pb.DESCRIPTOR.services_by_name["AdminService"].methods}
    assert methods - set(REPEATABLE["taskmix.v1.AdminService"]) == {
        *("CreateTenant", "DeleteTenant", "CreateKey"),
    }


def test_authorities_of_ones_own(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes(b"pem")
    config = ClientConfig("h:1", ca=ca)
    assert config.is_secure
    assert config.root_certificates == b"pem"
    assert ClientConfig("h:1", tls=True).root_certificates is None
    assert not ClientConfig("h:1").is_secure
    with pytest.raises(OSError, match="missing"):
        Client("h:1", ca=tmp_path / "missing")
