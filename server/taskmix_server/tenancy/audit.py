"""What was changed, by whom, and from what to what."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from taskmix_server.database import Database
from taskmix_server.database.models import AuditRow

MAX_LISTED = 1000

State = dict[str, Any]
"""What a thing was or is, as JSON; None where it did not exist."""


@dataclass(frozen=True, slots=True)
class Author:
    """Who makes a change: a tenant, the public part of its key, and the request."""

    tenant: str
    key_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class Change:
    """One change of state. `verb` says of what kind, such as `mixes.register`."""

    verb: str
    subject: str
    before: State | None
    after: State | None


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """A change as it was written down; `at` is in UTC."""

    id: int
    at: datetime
    author: Author
    change: Change


def record(session: Session, author: Author, change: Change) -> None:
    """Write a change down in the transaction that makes it."""
    session.add(
        AuditRow(
            at=datetime.now(UTC),
            tenant=author.tenant,
            key_id=author.key_id,
            request_id=author.request_id,
            verb=change.verb,
            subject=change.subject,
            before=change.before,
            after=change.after,
        )
    )


class AuditLog:
    """The table of changes. Calls block; run them off the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, author: Author, change: Change) -> None:
        """Write down a change that was made elsewhere than in the database."""
        with self._database.writing() as session:
            record(session, author, change)

    def latest(self, limit: int, before_id: int | None = None) -> list[AuditRecord]:
        """The newest changes first, at most `limit`, older than `before_id` if given."""
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(min(limit, MAX_LISTED))
        if before_id is not None:
            query = query.where(AuditRow.id < before_id)
        with self._database.reading() as session:
            return [_record_of(row) for row in session.scalars(query)]


def _record_of(row: AuditRow) -> AuditRecord:
    return AuditRecord(
        row.id,
        row.at,
        Author(row.tenant, row.key_id, row.request_id),
        Change(row.verb, row.subject, row.before, row.after),
    )
