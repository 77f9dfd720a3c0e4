"""Which version of an experiment a name means, or a step is meant for."""

import logging
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from taskmix_server.database.models import ExperimentRow
from taskmix_server.errors import FailedPreconditionError, NotFoundError
from taskmix_server.experiments.experiment import TRANSITIONS, Experiment, Status, Step
from taskmix_server.experiments.rows import experiment_of

logger = logging.getLogger(__name__)


def unknown(name: str) -> NotFoundError:
    """What a caller learns of an experiment that is not there, or not for it."""
    return NotFoundError(
        f"no experiment is named {name!r:.80}; `taskmix experiments list` shows them"
    )


def locked(session: Session, name: str) -> Sequence[ExperimentRow]:
    """Every version, newest first, for a transaction that writes."""
    query = select(ExperimentRow).where(ExperimentRow.name == name).with_for_update()
    return session.scalars(query.order_by(ExperimentRow.version.desc())).all()


def find(session: Session, name: str, version: int | None = None) -> Sequence[ExperimentRow]:
    """The versions of a name, newest first, or the one that is asked for; or NotFoundError."""
    query = select(ExperimentRow).where(ExperimentRow.name == name)
    rows = session.scalars(query.order_by(ExperimentRow.version.desc())).all()
    return _known(rows, name, version)


def newest_of_each(session: Session) -> list[Experiment]:
    """The newest version of each experiment, by name.

    One that was tampered with is left out and logged: whom it is for cannot be known, and the
    others must not suffer from it. Who asks for it by name learns what is wrong with it.
    """
    query = select(ExperimentRow).order_by(ExperimentRow.name, ExperimentRow.version)
    newest = {row.name: row for row in session.scalars(query)}
    found = []
    for row in newest.values():
        try:
            found.append(experiment_of(row))
        except FailedPreconditionError as error:
            logger.error("%s", error)
    return found


def _known(
    rows: Sequence[ExperimentRow], name: str, version: int | None
) -> Sequence[ExperimentRow]:
    found = [row for row in rows if version in (None, row.version)]
    if not found:
        raise unknown(name if version is None else f"{name}@{version}")
    return found


def pick(
    session: Session, name: str, version: int | None, step: Step
) -> tuple[ExperimentRow, Experiment]:
    """The version that a step is meant for."""
    rows = _known(locked(session, name), name, version)
    able = [row for row in rows if (Status(row.status), step) in TRANSITIONS]
    running = [row for row in able if row.status == Status.RUNNING]
    row = next(iter(running or able or rows))
    return row, experiment_of(row)
