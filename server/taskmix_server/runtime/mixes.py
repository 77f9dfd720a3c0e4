"""Named mixes, kept across restarts in the server's database."""

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import String, Text, create_engine, delete, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from taskmix_composer.mix import Mix, check_name
from taskmix_server.errors import AlreadyExistsError, NotFoundError


class _Base(DeclarativeBase):
    pass


class _Row(_Base):
    __tablename__ = "named_mixes"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    mix_json: Mapped[str] = mapped_column(Text)


@dataclass(frozen=True, slots=True)
class NamedMixRecord:
    """A mix and the name it goes by."""

    name: str
    mix: Mix


class NamedMixStore:
    """The table of named mixes. Calls block; run them off the event loop."""

    def __init__(self, url: str) -> None:
        """`url` is SQLAlchemy's, such as `sqlite:////var/lib/taskmix/taskmix.db`."""
        self._engine = create_engine(url)
        _Base.metadata.create_all(self._engine)

    @classmethod
    def at(cls, directory: Path) -> "NamedMixStore":
        """The store of a server's state directory, created if absent."""
        directory.mkdir(parents=True, exist_ok=True)
        return cls(f"sqlite:///{directory / 'taskmix.db'}")

    def register(self, name: str, mix: Mix) -> NamedMixRecord:
        """Give a mix a name. Repeating it is harmless; other content is AlreadyExistsError."""
        check_name(name)
        try:
            with Session(self._engine) as session, session.begin():
                session.add(_Row(name=name, mix_json=mix.canonical_json()))
        except IntegrityError:
            known = self.get(name)
            if known.mix != mix:
                raise AlreadyExistsError(
                    f"mix {name!r} exists as {known.mix}; delete it first or choose another name"
                ) from None
        return NamedMixRecord(name, mix)

    def find(self, name: str) -> NamedMixRecord | None:
        """The mix of a name, or None."""
        with Session(self._engine) as session:
            row = session.get(_Row, name)
            return NamedMixRecord(row.name, Mix.parse(row.mix_json)) if row else None

    def get(self, name: str) -> NamedMixRecord:
        """The mix of a name, or NotFoundError."""
        record = self.find(name)
        if record is None:
            raise _unknown(name)
        return record

    def all(self) -> list[NamedMixRecord]:
        """Every named mix, by name."""
        with Session(self._engine) as session:
            rows = session.scalars(select(_Row).order_by(_Row.name)).all()
            return [NamedMixRecord(row.name, Mix.parse(row.mix_json)) for row in rows]

    def delete(self, name: str) -> None:
        """Forget a name, or NotFoundError."""
        with Session(self._engine) as session, session.begin():
            found = session.scalars(
                delete(_Row).where(_Row.name == name).returning(_Row.name)
            ).all()
        if not found:
            raise _unknown(name)

    def close(self) -> None:
        self._engine.dispose()


def _unknown(name: str) -> NotFoundError:
    return NotFoundError(f"no mix is registered as {name!r}; `taskmix mixes list` shows what is")
