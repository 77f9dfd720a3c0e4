"""Tenants and keys in their database, and what a tenant's fields mean."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from taskmix_composer.mix import Mix
from taskmix_composer.recipe import Recipe
from taskmix_server.database import Database
from taskmix_server.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
)
from taskmix_server.tenancy import keys
from taskmix_server.tenancy.audit import AuditLog, Author
from taskmix_server.tenancy.config import AccessConfig
from taskmix_server.tenancy.principal import DEFAULT, Principal
from taskmix_server.tenancy.store import TenantStore
from taskmix_server.tenancy.tenant import Limits, Role, Tenant, Verb

AUTHOR = Author("ops", "0123456789ab", "a request")
OPS = Tenant("ops", Role.ADMIN)
BOB = Tenant(
    "bob",
    tasks=("law*", "math"),
    mixes=("bob-*",),
    verbs=(Verb.LOAD_TASK,),
    may_inline=True,
    limits=Limits(requests_per_s=2.5, max_concurrency=3),
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.at(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def store(database: Database) -> TenantStore:
    opened = TenantStore(database)
    opened.create(OPS, AUTHOR)
    return opened


def test_a_tenant_is_kept_whole(store: TenantStore) -> None:
    created = store.create(BOB, AUTHOR)
    assert replace(created, id="") == BOB
    assert store.tenants() == [created, replace(OPS, id=store.tenants()[1].id)]
    changed = store.update(replace(BOB, tasks=(), limits=Limits(weight=2.0)), AUTHOR)
    assert changed == replace(created, tasks=(), limits=Limits(weight=2.0))
    assert store.tenants()[0] == changed
    store.delete("bob", AUTHOR)
    assert [tenant.name for tenant in store.tenants()] == ["ops"]


def test_names_are_unique_and_known(store: TenantStore) -> None:
    with pytest.raises(AlreadyExistsError, match="'ops' exists"):
        store.create(OPS, AUTHOR)
    for call in (
        lambda: store.update(BOB, AUTHOR),
        lambda: store.delete("bob", AUTHOR),
        lambda: store.create_key("bob", None, AUTHOR),
        lambda: store.keys("bob"),
    ):
        with pytest.raises(NotFoundError, match="no tenant is named 'bob'"):
            call()
    with pytest.raises(NotFoundError, match="no key is 'bob'"):
        store.revoke_key("bob", AUTHOR)


def test_somebody_can_always_administer(database: Database) -> None:
    store = TenantStore(database)
    assert store.is_empty
    with pytest.raises(FailedPreconditionError, match="without an admin"):
        store.create(BOB, AUTHOR)
    assert store.is_empty
    store.create(OPS, AUTHOR)
    store.create(BOB, AUTHOR)
    with pytest.raises(FailedPreconditionError, match="without an admin"):
        store.delete("ops", AUTHOR)
    with pytest.raises(FailedPreconditionError, match="without an admin"):
        store.update(Tenant("ops"), AUTHOR)
    assert [tenant.role for tenant in store.tenants()] == [Role.USER, Role.ADMIN]
    store.delete("bob", AUTHOR)
    store.delete("ops", AUTHOR)
    assert store.is_empty


def test_keys(store: TenantStore) -> None:
    later = datetime.now(UTC) + timedelta(days=1)
    key, secret = store.create_key("ops", later, AUTHOR)
    assert secret.text.startswith(f"tmx_{key.id}_")
    found = store.find_key(key.id)
    assert found is not None
    assert found[0] == key == store.keys("ops")[0]
    assert (key.tenant, key.expires_at, key.revoked_at) == ("ops", later, None)
    assert keys.fits(secret.text, found[1])
    assert not keys.fits(secret.text[:-1] + "~", found[1])
    assert secret.text not in found[1]
    revoked = store.revoke_key(key.id, AUTHOR)
    assert revoked.revoked_at is not None
    assert store.revoke_key(key.id, AUTHOR) == revoked == store.keys()[0]
    with pytest.raises(InvalidRequestError, match="would have expired"):
        store.create_key("ops", datetime.now(UTC), AUTHOR)


def test_keys_are_told_apart() -> None:
    made = {keys.make().text for _ in range(3)}
    assert len(made) == 3
    assert {keys.id_of(text) for text in made} == {text.split("_")[1] for text in made}
    for text in ("", "tmx_", "tmx_0123456789ab_short", f"{made.pop()}x", "x" * 10**6):
        assert keys.id_of(text) is None
    assert "tmx_" not in repr(keys.make())


def test_every_change_is_written_down_once(store: TenantStore, database: Database) -> None:
    store.create(BOB, AUTHOR)
    store.update(replace(BOB, may_inline=False), AUTHOR)
    key, secret = store.create_key("bob", None, AUTHOR)
    store.revoke_key(key.id, AUTHOR)
    store.revoke_key(key.id, AUTHOR)  # changes nothing
    store.delete("bob", AUTHOR)
    log = AuditLog(database)
    records = log.latest(100)
    assert [record.change.verb for record in records] == [
        "tenants.delete",
        "keys.revoke",
        "keys.create",
        "tenants.update",
        "tenants.create",
        "tenants.create",
    ]
    assert {record.author for record in records} == {AUTHOR}
    update = records[3].change
    assert update.before is not None
    assert update.after is not None
    assert (update.before["may_inline"], update.after["may_inline"]) == (True, False)
    assert records[4].change.before is None
    assert records[0].change.after is None
    assert not any(secret.text.split("_", 2)[2] in str(record) for record in records)
    assert not any("argon2" in str(record) for record in records)
    newest = datetime.now(UTC) - records[0].at
    assert timedelta(0) <= newest < timedelta(minutes=1)
    assert log.latest(2, before_id=records[2].id) == records[3:5]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Tenant("Bob"),
        lambda: Tenant(""),
        lambda: Tenant("(operator)"),
        lambda: Tenant("x" * 65),
        lambda: Tenant("bob", tasks=("a b",)),
        lambda: Tenant("bob", mixes=("",)),
        lambda: Tenant("bob", tasks=("x",) * 257),
        lambda: Limits(requests_per_s=0.0),
        lambda: Limits(tokens_per_s=float("inf")),
        lambda: Limits(weight=float("nan")),
        lambda: Limits(max_concurrency=-1),
    ],
)
def test_wrong_values_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidRequestError):
        wrong()  # type: ignore[operator]


def test_globs() -> None:
    bob = Principal(BOB)
    assert [
        bob.may_use_task(name) for name in ("law", "law-2", "math", "mat", "maths", "xlaw")
    ] == [
        *(True, True, True),
        *(False, False, False),
    ]
    assert bob.may_use_mix("bob-1", Mix.parse("law:0.5+math:0.5"))
    assert not bob.may_use_mix("bob-1", Mix.parse("law:0.5+code:0.5"))
    assert not bob.may_use_mix("eve-1", Mix.parse("law"))
    assert not Principal(Tenant("eve")).may_use_task("law")
    assert Principal(OPS).may_use_task("anything")
    assert Principal(OPS).may_use_mix("anything", Mix.parse("x"))


def test_what_may_be_written() -> None:
    plain = Principal(Tenant("eve"))
    for mix in (Mix(), Mix.parse("law"), Mix.parse("law:0.5+law:0.5"), Mix.parse("law:0")):
        plain.check_written(mix)
    masked = Mix.from_json({"terms": [{"task": "law", "masks": ["p.law"]}]})
    for wanted in (Mix.parse("law:2"), masked, Recipe("average", ("law",))):
        with pytest.raises(PermissionDeniedError):
            plain.check_written(wanted)
        Principal(BOB).check_written(wanted)
    with pytest.raises(PermissionDeniedError, match="negative"):
        Principal(BOB).check_written(Mix.parse("law:-0.1+math"))
    Principal(replace(BOB, may_negative=True)).check_written(Mix.parse("law:-0.1"))
    Principal(OPS).check_written(Mix.parse("law:-0.1"))


def test_verbs() -> None:
    for verb in Verb:
        Principal(OPS).check_verb(verb)
        if verb is Verb.LOAD_TASK:
            Principal(BOB).check_verb(verb)
        else:
            with pytest.raises(PermissionDeniedError, match=f"may not do {verb}"):
                Principal(BOB).check_verb(verb)
    with pytest.raises(PermissionDeniedError, match="not an admin"):
        Principal(BOB).check_admin()


def test_without_tenants_nothing_is_salted() -> None:
    assert DEFAULT.cache_salt is None
    assert DEFAULT.tenant.is_admin


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_loopback_needs_no_tenants(host: str) -> None:
    AccessConfig().check_host(host, is_open=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org", ""])
def test_other_addresses_need_tenants(host: str) -> None:
    with pytest.raises(FailedPreconditionError, match="--allow-unauthenticated"):
        AccessConfig().check_host(host, is_open=True)
    AccessConfig().check_host(host, is_open=False)
    AccessConfig(allow_unauthenticated=True).check_host(host, is_open=True)


def test_limits_are_numbers_that_json_can_say() -> None:
    assert asdict(Limits(weight=1.5))["weight"] == 1.5
