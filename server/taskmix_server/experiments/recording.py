"""Measured requests and reported outcomes in the database, each batch whole or not at all."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from taskmix_server.database import Database
from taskmix_server.database.models import ExposureRow, MeasuredRequestRow, OutcomeRow
from taskmix_server.errors import AlreadyExistsError, InvalidRequestError
from taskmix_server.experiments.outcome import Measured, Outcome
from taskmix_server.experiments.store import Now, utc_now
from taskmix_server.experiments.units import Unit, find_units

MAX_OUTCOMES = 1000
MAX_TRIES = 3  # of a batch that another server's came between

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Recorded:
    """How many outcomes of a batch are new, and how many were there already."""

    num_new: int
    num_known: int


class RecordStore:
    """The tables of exposures, requests and outcomes. Calls block; run them off the event loop."""

    def __init__(self, database: Database, now: Now = utc_now) -> None:
        self._database = database
        self._now = now

    def write(self, measured: Sequence[Measured]) -> None:
        """Keep requests, and the first exposure of each of their subjects."""

        def whole(session: Session) -> None:
            exposures = _exposed(session, measured)
            rows = [_request_row(item, exposures.get(_key(item))) for item in measured]
            if rows:
                session.execute(insert(MeasuredRequestRow), rows)

        self._tried(whole)

    def record(self, name: str, outcomes: Sequence[Outcome], tenant_id: str | None) -> Recorded:
        """Keep outcomes of an experiment, all or none.

        tenant_id: whose subjects and requests they are of; None is any tenant's. Raises
        NotFoundError, AlreadyExistsError for a key that was used for something else,
        InvalidRequestError for a moment that cannot be, FailedPreconditionError if it is too late.
        """
        if len(outcomes) > MAX_OUTCOMES:
            raise InvalidRequestError(
                f"a batch takes at most {MAX_OUTCOMES} outcomes, got {len(outcomes)}; send more "
                "batches"
            )
        wanted = _by_key(outcomes)

        def whole(session: Session) -> Recorded:
            known = _known(session, name, wanted, tenant_id or "")
            for key, said in known.items():
                if said != _said(wanted[key]):
                    raise _conflict(key)
            new = [outcome for key, outcome in wanted.items() if key not in known]
            units = find_units(session, name, new, tenant_id)
            for outcome in new:
                unit = units[outcome.key]
                at = unit.checked_moment(outcome, self._now())
                session.add(_outcome_row(outcome, unit, at, tenant_id or ""))
            return Recorded(len(new), len(outcomes) - len(new))

        return self._tried(whole)

    def _tried(self, whole: Callable[[Session], ResultT]) -> ResultT:
        """Run a transaction; again, where another server wrote the same rows at the same time."""
        for num_left in reversed(range(MAX_TRIES)):
            try:
                with self._database.writing() as session:
                    return whole(session)
            except IntegrityError:
                if not num_left:
                    raise
        raise AssertionError("the last try returns or raises")


_ExposureKey = tuple[int, str, str]
"""Experiment's version, tenant, subject."""


def _key(item: Measured) -> _ExposureKey:
    return item.experiment_id, item.tenant_id, item.subject


def _exposed(session: Session, measured: Iterable[Measured]) -> dict[_ExposureKey, int]:
    """The ids of the exposures of these requests' subjects; those that are missing are added."""
    first: dict[_ExposureKey, Measured] = {}
    for item in sorted(measured, key=lambda item: item.at):
        if item.subject and not item.is_shadow:
            first.setdefault(_key(item), item)
    known = _known_exposures(session, first)
    missing = [_exposure_row(item) for key, item in first.items() if key not in known]
    if not missing:
        return known
    session.execute(insert(ExposureRow), missing)
    return _known_exposures(session, first)


def _known_exposures(
    session: Session, wanted: Mapping[_ExposureKey, Measured]
) -> dict[_ExposureKey, int]:
    columns = (ExposureRow.experiment_id, ExposureRow.tenant_id, ExposureRow.subject)
    query = select(*columns, ExposureRow.id).where(
        ExposureRow.experiment_id.in_({experiment_id for experiment_id, _, _ in wanted}),
        ExposureRow.subject.in_({subject for _, _, subject in wanted}),
    )
    found = {(row[0], row[1], row[2]): row[3] for row in session.execute(query)}
    return {key: found[key] for key in wanted if key in found}


def _exposure_row(item: Measured) -> dict[str, Any]:
    return {
        "experiment_id": item.experiment_id,
        "tenant_id": item.tenant_id,
        "subject": item.subject,
        "arm": item.arm,
        "is_override": item.is_override,
        "at": item.at,
    }


def _request_row(item: Measured, exposure_id: int | None) -> dict[str, Any]:
    columns = {name: getattr(item, name) for name in _REQUEST_COLUMNS}
    return {**columns, "exposure_id": None if item.is_shadow else exposure_id}


_REQUEST_COLUMNS = tuple(
    column.name for column in fields(Measured) if column.name not in ("subject", "is_override")
)


def _by_key(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """Each key once; repeated with other content it is refused."""
    wanted: dict[str, Outcome] = {}
    for outcome in outcomes:
        if wanted.setdefault(outcome.key, outcome) != outcome:
            raise _conflict(outcome.key)
    return wanted


_Said = tuple[str, float, str, str]
"""Metric, value, and the subject or request that an outcome is of: the other is empty."""


def _said(outcome: Outcome) -> _Said:
    return outcome.metric, outcome.value, outcome.subject, outcome.request_id


def _known(session: Session, name: str, keys: Iterable[str], tenant_id: str) -> dict[str, _Said]:
    """What was said under keys already, whichever version of the experiment it is of by now."""
    row = OutcomeRow
    query = (
        select(row.key, row.metric, row.value, row.request_id, ExposureRow.subject)
        .outerjoin(ExposureRow, row.exposure_id == ExposureRow.id)
        .where(row.experiment == name, row.tenant_id == tenant_id, row.key.in_(list(keys)))
    )
    return {
        key: (metric, value, "" if request_id else subject, request_id)
        for key, metric, value, request_id, subject in session.execute(query)
    }


def _outcome_row(outcome: Outcome, unit: Unit, at: datetime, tenant_id: str) -> OutcomeRow:
    return OutcomeRow(
        experiment=unit.experiment.name,
        experiment_id=unit.experiment.id,
        exposure_id=unit.exposure_id,
        request_id=outcome.request_id,
        tenant_id=tenant_id,
        key=outcome.key,
        metric=outcome.metric,
        value=outcome.value,
        at=at,
    )


def _conflict(key: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"the key {key!r} stands for another outcome already; give each outcome a key of its own"
    )
