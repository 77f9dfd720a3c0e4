"""What a promotion does to the table of named mixes, within its transaction."""

from sqlalchemy.orm import Session

from taskmix_composer.mix import Mix
from taskmix_server.database.models import NamedMixRow
from taskmix_server.errors import FailedPreconditionError


def meaning(session: Session, name: str) -> Mix | None:
    """What a name means now, None if nothing; locked until the transaction ends."""
    row = session.get(NamedMixRow, name, with_for_update=True)
    return Mix.parse(row.mix_json) if row else None


def check_meaning(session: Session, name: str, mix: Mix) -> None:
    """Refuse to undo a promotion whose name means something else by now."""
    if meaning(session, name) != mix:
        raise FailedPreconditionError(
            f"mix {name!r} is no longer what the promotion made it; undo what came after, or "
            "register the mix that you want yourself"
        )


def let_mean(session: Session, name: str, mix: Mix | None) -> None:
    """Let a name mean a mix; None forgets it."""
    row = session.get(NamedMixRow, name)
    if mix is None:
        session.delete(row)
    elif row is None:
        session.add(NamedMixRow(name=name, mix_json=mix.canonical_json()))
    else:
        row.mix_json = mix.canonical_json()
