"""Changes: in turn, to their end, and none that waits for ever."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskmix_server.database import Database
from taskmix_server.database.connection import BUSY_S
from taskmix_server.errors import UnavailableError
from taskmix_server.runtime.changes import MAX_WAIT_S, Changes
from taskmix_server.services.tenants import TenantService
from taskmix_server.tenancy.audit import AuditLog, Author
from taskmix_server.tenancy.authenticator import Authenticator
from taskmix_server.tenancy.keys import ApiKey, Secret
from taskmix_server.tenancy.principal import Principal
from taskmix_server.tenancy.store import TenantStore
from taskmix_server.tenancy.tenant import Role, Tenant

NUM_CALLERS = 10
ANSWERED_S = 30.0
OPS = Principal(Tenant("ops", Role.ADMIN))


class Gate:
    """A change that waits until it is opened, and counts how often it was made."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.begun = asyncio.Event()
        self.num_made = 0

    async def change(self) -> int:
        self.begun.set()
        await self.opened.wait()
        self.num_made += 1
        return self.num_made


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.at(tmp_path)
    yield opened
    opened.close()


async def test_a_change_that_waits_too_long_is_not_made() -> None:
    changes, gate = Changes(max_wait_s=0.01), Gate()
    first, *others = [asyncio.create_task(changes.run(gate.change)) for _ in range(NUM_CALLERS)]
    for refused in others:
        with pytest.raises(UnavailableError, match="nothing was changed"):
            await refused
    gate.opened.set()
    assert await first == 1, "a change that has begun is not bounded"
    assert await changes.run(gate.change) == 2, "none of the others was made late"


async def test_without_a_bound_changes_wait_for_each_other() -> None:
    changes, gate = Changes(), Gate()
    waiting = [asyncio.create_task(changes.run(gate.change)) for _ in range(NUM_CALLERS)]
    await gate.begun.wait()
    gate.opened.set()
    assert await asyncio.gather(*waiting) == list(range(1, NUM_CALLERS + 1))


async def test_a_change_that_nobody_waits_for_is_made_however_late() -> None:
    changes, gate = Changes(max_wait_s=0.01), Gate()
    first = asyncio.create_task(changes.run(gate.change))
    await gate.begun.wait()
    late = changes.start(gate.change)
    with pytest.raises(UnavailableError):
        await changes.run(gate.change)
    gate.opened.set()
    assert (await first, await late) == (1, 2)


async def test_a_caller_that_leaves_leaves_its_change_to_its_end() -> None:
    changes, gate = Changes(max_wait_s=0.01), Gate()
    leaving = asyncio.create_task(changes.run(gate.change))
    await gate.begun.wait()
    leaving.cancel()
    gate.opened.set()
    assert await changes.run(gate.change) == 2


class SlowStore(TenantStore):
    """Its keys are made when the loop says so, as by a database that another process holds."""

    def __init__(self, database: Database, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(database)
        self.gate = Gate()
        self._loop = loop

    def create_key(self, tenant: str, *rest: object) -> tuple[ApiKey, Secret]:
        asyncio.run_coroutine_threadsafe(self.gate.change(), self._loop).result(20)
        return super().create_key(tenant, None, Author("ops", "", ""))


async def test_many_who_administer_a_database_that_is_locked(database: Database) -> None:
    store = SlowStore(database, asyncio.get_running_loop())
    store.create(OPS.tenant, Author("ops", "", ""))
    changes = Changes(max_wait_s=0.01)
    service = TenantService(store, AuditLog(database), Authenticator(store), changes)
    asking = [
        asyncio.create_task(service.create_key(OPS, "ops", None, "")) for _ in range(NUM_CALLERS)
    ]
    first, *others = asking
    for refused in others:
        with pytest.raises(UnavailableError, match="nothing was changed"):
            await refused
    store.gate.opened.set()
    key, _ = await first
    assert [known.id for known in store.keys("ops")] == [key.id]


def test_every_caller_hears_in_time() -> None:
    """A change waits for its turn, among writers of the database, and for its lock."""
    assert MAX_WAIT_S + 2 * BUSY_S < ANSWERED_S
