"""Named mixes, kept across restarts in the server's database."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select

from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Mix, check_name
from taskmix_server.database import Database
from taskmix_server.database.models import NamedMixRow
from taskmix_server.errors import AlreadyExistsError, NotFoundError
from taskmix_server.tenancy import audit
from taskmix_server.tenancy.audit import Author, Change, State

Sees = Callable[[str, Mix], bool]
"""Whether a named mix exists for a caller, by its name and content."""


def is_name(text: str) -> bool:
    """Whether a mix may go by it: expressions with a coefficient, JSON and the like are none."""
    try:
        check_name(text)
    except InvalidMixError:
        return False
    return True


def everything(name: str, mix: Mix) -> bool:
    """Sees every mix: for the server's own needs."""
    return True


@dataclass(frozen=True, slots=True)
class NamedMixRecord:
    """A mix and the name it goes by."""

    name: str
    mix: Mix


class NamedMixStore:
    """The table of named mixes. Calls block; run them off the event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def register(
        self, name: str, mix: Mix, author: Author, sees: Sees = everything
    ) -> NamedMixRecord:
        """Give a mix a name. Repeating it is harmless; other content is AlreadyExistsError."""
        check_name(name)
        with self._database.writing() as session:
            row = session.get(NamedMixRow, name)
            if row is None:
                session.add(NamedMixRow(name=name, mix_json=mix.canonical_json()))
                audit.record(session, author, Change("mixes.register", name, None, _state(mix)))
                return NamedMixRecord(name, mix)
        known = _record_of(row)
        if known.mix == mix:
            return known
        content = f" as {known.mix}" if sees(name, known.mix) else ""
        raise AlreadyExistsError(
            f"mix {name!r} exists{content}; delete it first or choose another name"
        )

    def find(self, name: str, sees: Sees = everything) -> NamedMixRecord | None:
        """The mix of a name, or None if there is none that the caller sees."""
        with self._database.reading() as session:
            row = session.get(NamedMixRow, name)
        record = _record_of(row) if row else None
        return record if record and sees(record.name, record.mix) else None

    def get(self, name: str, sees: Sees = everything) -> NamedMixRecord:
        """The mix of a name, or NotFoundError."""
        record = self.find(name, sees)
        if record is None:
            raise _unknown(name)
        return record

    def all(self, sees: Sees = everything) -> list[NamedMixRecord]:
        """Every named mix that the caller sees, by name."""
        with self._database.reading() as session:
            rows = session.scalars(select(NamedMixRow).order_by(NamedMixRow.name)).all()
        records = map(_record_of, rows)
        return [record for record in records if sees(record.name, record.mix)]

    def delete(self, name: str, author: Author, sees: Sees = everything) -> None:
        """Forget a name, or NotFoundError."""
        with self._database.writing() as session:
            row = session.get(NamedMixRow, name)
            record = _record_of(row) if row else None
            if record is None or not sees(name, record.mix):
                raise _unknown(name)
            session.delete(row)
            audit.record(session, author, Change("mixes.delete", name, _state(record.mix), None))


def _record_of(row: NamedMixRow) -> NamedMixRecord:
    return NamedMixRecord(row.name, Mix.parse(row.mix_json))


def _state(mix: Mix) -> State:
    return {"mix": mix.to_json()}


def _unknown(name: str) -> NotFoundError:
    return NotFoundError(f"no mix is registered as {name!r}; `taskmix mixes list` shows what is")
