"""From keys to principals: remembered for a while, forgotten at once."""

import asyncio
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from taskmix_server.database import Database
from taskmix_server.errors import UnauthenticatedError
from taskmix_server.runtime.changes import Changes
from taskmix_server.services.tenants import TenantService
from taskmix_server.tenancy.audit import AuditLog, Author
from taskmix_server.tenancy.authenticator import MAX_CONCURRENT_CHECKS, Authenticator
from taskmix_server.tenancy.keys import ApiKey
from taskmix_server.tenancy.principal import Principal
from taskmix_server.tenancy.store import TenantStore
from taskmix_server.tenancy.tenant import Role, Tenant

AUTHOR = Author("ops", "", "")
OPS = Principal(Tenant("ops", Role.ADMIN))


class CountingStore(TenantStore):
    """Counts look-ups; one that was begun waits for `gate` while that is closed."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.num_found = 0
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def find_key(self, key_id: str) -> tuple[ApiKey, str, Tenant] | None:
        self.num_found += 1
        found = super().find_key(key_id)
        self.waiting.set()
        assert self.gate.wait(20)
        return found


class CrowdedStore(TenantStore):
    """Counts look-ups that run at a time; each waits for `gate`, and `begun` counts them up."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.gate = threading.Event()
        self.begun = threading.Semaphore(0)
        self.num_running = 0
        self.most_running = 0
        self._lock = threading.Lock()

    def find_key(self, key_id: str) -> tuple[ApiKey, str, Tenant] | None:
        with self._lock:
            self.num_running += 1
            self.most_running = max(self.most_running, self.num_running)
        self.begun.release()
        assert self.gate.wait(20)
        with self._lock:
            self.num_running -= 1
        return super().find_key(key_id)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.at(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def store(database: Database) -> CountingStore:
    opened = CountingStore(database)
    opened.create(OPS.tenant, AUTHOR)
    return opened


def service(store: TenantStore, database: Database, authenticator: Authenticator) -> TenantService:
    return TenantService(store, AuditLog(database), authenticator, Changes())


async def test_a_key_is_verified_once(store: CountingStore) -> None:
    key, secret = store.create_key("ops", None, AUTHOR)
    authenticator = Authenticator(store)
    first = await authenticator.principal(secret.text)
    assert (first.name, first.key_id) == ("ops", key.id)
    assert await authenticator.principal(secret.text) == first
    assert store.num_found == 1
    with pytest.raises(UnauthenticatedError):
        await authenticator.principal(secret.text[:-4] + "AAAA")
    assert store.num_found == 2


async def test_nothing_wrong_is_remembered(store: CountingStore) -> None:
    authenticator = Authenticator(store)
    for _ in range(2):
        with pytest.raises(UnauthenticatedError):
            await authenticator.principal("tmx_0123456789ab_" + "x" * 43)
    assert store.num_found == 2


async def test_a_revoked_key_ends_at_once(store: CountingStore, database: Database) -> None:
    key, secret = store.create_key("ops", None, AUTHOR)
    authenticator = Authenticator(store)
    await authenticator.principal(secret.text)
    await service(store, database, authenticator).revoke_key(OPS, key.id, "")
    with pytest.raises(UnauthenticatedError):
        await authenticator.principal(secret.text)


async def test_a_key_revoked_while_it_is_verified(store: CountingStore, database: Database) -> None:
    key, secret = store.create_key("ops", None, AUTHOR)
    authenticator = Authenticator(store)
    store.gate.clear()
    verifying = asyncio.create_task(authenticator.principal(secret.text))
    assert await asyncio.to_thread(store.waiting.wait, 20)
    await service(store, database, authenticator).revoke_key(OPS, key.id, "")
    store.gate.set()
    await verifying  # it came before the revocation
    with pytest.raises(UnauthenticatedError):
        await authenticator.principal(secret.text)


async def test_callers_that_leave_do_not_make_room_for_more_checks(database: Database) -> None:
    """Each takes 46 MiB: what a caller who has left began counts until it has ended."""
    store = CrowdedStore(database)
    store.create(OPS.tenant, AUTHOR)
    _, secret = store.create_key("ops", None, AUTHOR)
    authenticator = Authenticator(store)
    for number in range(3 * MAX_CONCURRENT_CHECKS):
        wrong = f"tmx_{number:012x}_{'x' * 43}"
        leaving = asyncio.create_task(authenticator.principal(wrong))
        if number < MAX_CONCURRENT_CHECKS:
            assert await asyncio.to_thread(store.begun.acquire, timeout=20)
        else:
            await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
    staying = asyncio.create_task(authenticator.principal(secret.text))
    await asyncio.sleep(0)
    store.gate.set()
    assert (await staying).name == "ops"
    assert store.most_running == MAX_CONCURRENT_CHECKS


async def test_rights_change_at_once(store: CountingStore, database: Database) -> None:
    store.create(Tenant("bob"), AUTHOR)
    _, secret = store.create_key("bob", None, AUTHOR)
    authenticator = Authenticator(store)
    tenants = service(store, database, authenticator)
    assert not (await authenticator.principal(secret.text)).may_use_task("law")
    await tenants.update(OPS, Tenant("bob", tasks=("law",)), "")
    assert (await authenticator.principal(secret.text)).may_use_task("law")
    await tenants.delete(OPS, "bob", "")
    with pytest.raises(UnauthenticatedError):
        await authenticator.principal(secret.text)


async def test_a_remembered_key_expires_too(store: CountingStore) -> None:
    moment = datetime.now(UTC) + timedelta(hours=1)
    _, secret = store.create_key("ops", moment, AUTHOR)
    now = [moment - timedelta(seconds=1)]
    authenticator = Authenticator(store, now=lambda: now[0])
    await authenticator.principal(secret.text)
    now[0] = moment
    with pytest.raises(UnauthenticatedError):
        await authenticator.principal(secret.text)
    assert store.num_found == 1


async def test_memory_holds_no_key(store: CountingStore) -> None:
    _, secret = store.create_key("ops", None, AUTHOR)
    authenticator = Authenticator(store)
    await authenticator.principal(secret.text)
    assert secret.text not in repr(vars(authenticator))
    (name,) = authenticator._verified
    assert len(name) == 64


async def test_one_answer_for_whatever_is_wrong(store: CountingStore) -> None:
    key, secret = store.create_key("ops", None, AUTHOR)
    store.revoke_key(key.id, AUTHOR)
    authenticator = Authenticator(store)
    messages = set()
    for text in (None, "", "x", secret.text, "tmx_0123456789ab_" + "x" * 43):
        with pytest.raises(UnauthenticatedError) as caught:
            await authenticator.principal(text)
        messages.add(str(caught.value))
    assert len(messages) == 1
