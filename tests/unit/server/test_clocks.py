"""A wall clock that jumps: what is kept stays in order, and nothing waits or ends by it."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import taskmix_server
from taskmix_server.database import Database
from taskmix_server.database.models import AuditRow
from taskmix_server.errors import UnauthenticatedError
from taskmix_server.tenancy.audit import AuditLog, Author, Change
from taskmix_server.tenancy.authenticator import Authenticator
from taskmix_server.tenancy.store import TenantStore
from taskmix_server.tenancy.tenant import Role, Tenant

SOURCE = Path(taskmix_server.__file__).parent
WALL_CLOCK = re.compile(r"time\.time\(|time\.time_ns|datetime\.now\(|\.utcnow\(")
READS_WALL_CLOCK = {
    "experiments/store.py",  # when a split was changed, for its history
    "cli/tenants.py",  # when a key is to expire
    "rest/app.py",  # `created` of a model
    "telemetry/requests.py",  # the start of a span
    "tenancy/audit.py",
    "tenancy/authenticator.py",  # whether a key has expired
    "tenancy/store.py",  # when a key was made, and revoked
}
AUTHOR = Author("ops", "", "a request")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database.at(tmp_path)
    yield opened
    opened.close()


async def test_a_key_that_expired_stays_expired(database: Database) -> None:
    store = TenantStore(database)
    store.create(Tenant("ops", Role.ADMIN), AUTHOR)
    expires_at = datetime.now(UTC) + timedelta(hours=1)
    _, expiring = store.create_key("ops", expires_at, AUTHOR)
    _, lasting = store.create_key("ops", None, AUTHOR)
    now = [expires_at - timedelta(seconds=1)]
    authenticator = Authenticator(store, now=lambda: now[0])
    assert (await authenticator.principal(expiring.text)).name == "ops"
    now[0] = expires_at
    with pytest.raises(UnauthenticatedError):
        await authenticator.principal(expiring.text)
    now[0] = expires_at - timedelta(days=400)
    authenticator.forget()
    with pytest.raises(UnauthenticatedError):
        await authenticator.principal(expiring.text)
    assert (await authenticator.principal(lasting.text)).name == "ops"


def test_changes_are_listed_in_the_order_they_were_made(database: Database) -> None:
    audit = AuditLog(database)
    for number in range(3):
        audit.write(AUTHOR, Change("mixes.register", f"mix-{number}", None, None))
    with database.writing() as session:
        last = session.get(AuditRow, 3)
        assert last is not None
        last.at -= timedelta(days=400)
    assert [record.change.subject for record in audit.latest(9)] == ["mix-2", "mix-1", "mix-0"]


def test_the_wall_clock_is_read_for_what_is_kept_alone() -> None:
    """Waits, rates and durations are on the monotonic clock."""
    reading = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if WALL_CLOCK.search(path.read_text(encoding="utf-8"))
    }
    assert reading == READS_WALL_CLOCK
