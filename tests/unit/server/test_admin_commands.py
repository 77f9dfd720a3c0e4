"""`taskmix tenants`, `keys` and `audit`: on a state directory, and the same over gRPC."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from taskmix_client import TenantLimits
from taskmix_server.cli import main, tenants
from taskmix_server.database import Database, state_in_use
from taskmix_server.rpc.server import GrpcEdge
from taskmix_server.tenancy import keys
from taskmix_server.tenancy.store import TenantStore
from taskmix_server.tenancy.tenant import Limits, Role, Tenant, Verb
from tests.unit.server.conftest import Parts, with_access
from tests.unit.server.secured import AUTHOR

COMMANDS = {"tenants": tenants.tenants, "keys": tenants.keys, "audit": tenants.audit}
RIGHTS = (
    *("--tasks", "law*", "--tasks", "math", "--mixes", "bob-*", "--verbs", "tasks.load"),
    *("--inline", "--requests-per-s", "2.5", "--max-queued", "7"),
)
Run = Callable[..., Result]


def invoke(*arguments: str, **environment: str) -> Result:
    verb, *rest = arguments
    return CliRunner().invoke(COMMANDS[verb], rest, env=environment)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return lambda *arguments: CliRunner().invoke(
        main, [*arguments, "--state", str(tmp_path / "state")]
    )


def test_from_the_first_admin_to_a_revoked_key(run: Run, tmp_path: Path) -> None:
    assert run("tenants", "create", "bob").stderr.startswith("Error: this would leave tenants")
    assert run("tenants", "create", "ops", "--role", "admin").exit_code == 0
    assert run("tenants", "create", "bob", *RIGHTS).exit_code == 0
    made = run("keys", "create", "bob", "--expires-in-days", "2")
    key_id = keys.id_of(made.stdout.strip())
    assert key_id is not None
    assert key_id in run("keys", "list", "--tenant", "bob").stdout
    assert run("keys", "list", "--tenant", "ops").stdout.count("\n") == 1
    assert run("keys", "revoke", key_id).exit_code == 0
    lines = [json.loads(line) for line in run("audit", "--limit", "4").stdout.splitlines()]
    assert [line["verb"] for line in lines] == [
        *("keys.revoke", "keys.create", "tenants.create", "tenants.create"),
    ]
    assert {line["tenant"] for line in lines} == {"(operator)"}
    assert run("tenants", "delete", "bob").stdout == "deleted bob\n"
    database = Database.at(tmp_path / "state")
    assert [tenant.name for tenant in TenantStore(database).tenants()] == ["ops"]
    database.close()


def test_an_update_changes_what_it_names(run: Run, tmp_path: Path) -> None:
    run("tenants", "create", "ops", "--role", "admin")
    run("tenants", "create", "bob", *RIGHTS)
    changed = run("tenants", "update", "bob", "--no-inline", "--negative", "--max-queued", "0")
    assert changed.stdout.splitlines()[1].split() == [
        *("bob", "user", "law*", "math", "bob-*", "tasks.load", "no", "yes"),
        "requests_per_s=2.5",
    ]
    database = Database.at(tmp_path / "state")
    bob = TenantStore(database).tenants()[0]
    assert (bob.tasks, bob.mixes, bob.verbs) == (("law*", "math"), ("bob-*",), (Verb.LOAD_TASK,))
    assert (bob.may_inline, bob.may_negative) == (False, True)
    assert bob.limits == Limits(requests_per_s=2.5)
    database.close()
    assert run("tenants", "update", "eve").stderr == (
        "Error: no tenant is named 'eve'; they are: bob, ops\n"
    )


def test_a_running_server_s_state_is_left_alone(run: Run, tmp_path: Path) -> None:
    with state_in_use(tmp_path / "state"):
        refused = run("tenants", "create", "ops", "--role", "admin")
    assert refused.exit_code == 1
    assert "a server runs on" in refused.stderr
    assert "--server" in refused.stderr


@pytest.fixture
async def remote(parts: Parts) -> AsyncIterator[Callable[..., Any]]:
    parts.store.create(Tenant("ops", Role.ADMIN), AUTHOR)
    key = parts.store.create_key("ops", None, AUTHOR)[1].text
    services = with_access(
        parts.inference, parts.admin, parts.experiments, parts.audit, parts.store
    )
    edge = GrpcEdge(services)
    target = f"127.0.0.1:{await edge.start('127.0.0.1', 0)}"
    yield lambda *arguments: asyncio.to_thread(
        lambda: invoke(*arguments, TASKMIX_SERVER=target, TASKMIX_API_KEY=key)
    )
    await edge.stop(0.0)


async def test_the_same_over_grpc(remote: Callable[..., Any], parts: Parts) -> None:
    created = await remote("tenants", "create", "bob", *RIGHTS)
    assert created.stdout.splitlines()[1].split() == [
        *("bob", "user", "law*", "math", "bob-*", "tasks.load", "yes", "no"),
        *("requests_per_s=2.5", "max_queued=7"),
    ]
    made = await remote("keys", "create", "bob", "--expires-in-days", "2")
    key_id = keys.id_of(made.stdout.strip())
    assert key_id is not None
    revoked = await remote("keys", "revoke", key_id)
    assert revoked.stdout.splitlines()[1].startswith(f"{key_id}  bob")
    changed = await remote("tenants", "update", "bob", "--role", "admin")
    assert changed.exit_code == 0
    gone = await remote("tenants", "delete", "bob")
    assert gone.stdout == "deleted bob\n"
    audit = await remote("audit", "--limit", "3")
    assert [json.loads(line)["verb"] for line in audit.stdout.splitlines()] == [
        *("tenants.delete", "tenants.update", "keys.revoke"),
    ]
    assert len(json.loads(audit.stdout.splitlines()[0])["request_id"]) == 32


async def test_an_open_server_gets_no_tenants(parts: Parts) -> None:
    """It would lock everybody out at once, or nobody until it is started again."""
    edge = GrpcEdge(parts.services)
    target = f"127.0.0.1:{await edge.start('127.0.0.1', 0)}"
    refused = await asyncio.to_thread(
        lambda: invoke("tenants", "create", "ops", "--role", "admin", TASKMIX_SERVER=target)
    )
    await edge.stop(0.0)
    assert refused.exit_code == 1
    assert "started without tenants" in refused.stderr
    assert parts.store.is_empty


def test_every_limit_has_a_flag() -> None:
    limits = tenants.LIMITS.keys()
    assert limits == {field.name for field in fields(Limits)}
    assert limits == {field.name for field in fields(TenantLimits)}
