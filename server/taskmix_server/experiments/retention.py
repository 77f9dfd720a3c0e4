"""How long requests, subjects and outcomes are kept."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, and_, delete, select

from taskmix_server.database import Database
from taskmix_server.database.models import (
    ExperimentRow,
    ExposureRow,
    MeasuredRequestRow,
    OutcomeRow,
)

SHADOWS_KEPT = timedelta(days=30)
"""What shadow arms did, after they did it."""

ENDED_KEPT = timedelta(days=90)
"""Everything that an experiment's version was judged by, after it ended."""

BATCH = 5000

_Table = type[ExposureRow] | type[MeasuredRequestRow] | type[OutcomeRow]


def forget_some(database: Database, now: datetime) -> int:
    """Remove some of the rows that are kept no longer; returns how many, 0 if none is left. Blocks.

    It is called until none is left, so that no other writer waits for more than `BATCH` rows.
    Experiments themselves stay, with their designs and how they ended.
    """
    with database.writing() as session:
        for table, is_old in _old(now):
            ids = session.scalars(select(table.id).where(is_old).limit(BATCH)).all()
            if ids:
                session.execute(delete(table).where(table.id.in_(ids)))
                return len(ids)
    return 0


def _old(now: datetime) -> Sequence[tuple[_Table, ColumnElement[bool]]]:
    """Tables in the order in which rows may go, since outcomes and requests refer to exposures."""
    ended = select(ExperimentRow.id).where(ExperimentRow.stopped_at < now - ENDED_KEPT)
    request = MeasuredRequestRow
    is_old_shadow = and_(request.is_shadow.is_(True), request.at < now - SHADOWS_KEPT)
    return (
        (request, is_old_shadow),
        (OutcomeRow, OutcomeRow.experiment_id.in_(ended)),
        (request, request.experiment_id.in_(ended)),
        (ExposureRow, ExposureRow.experiment_id.in_(ended)),
    )
