"""Whom an outcome is of: the exposed subject or the measured request that it names."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from taskmix_server.database.models import ExperimentRow, ExposureRow, MeasuredRequestRow
from taskmix_server.errors import FailedPreconditionError, InvalidRequestError, NotFoundError
from taskmix_server.experiments.experiment import Experiment
from taskmix_server.experiments.outcome import Outcome
from taskmix_server.experiments.rows import experiment_of

LATE = timedelta(days=7)
"""How long after the end of a version its outcomes are taken."""

MAX_SKEW = timedelta(minutes=5)
"""How far a caller's clock may be from the server's."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A subject or request of an experiment's version; `since` is when it was answered first."""

    experiment: Experiment
    tenant_id: str
    since: datetime
    exposure_id: int | None

    def checked_moment(self, outcome: Outcome, now: datetime) -> datetime:
        """When an outcome came about; an error if that is too late, or cannot be."""
        stopped_at = self.experiment.stopped_at
        if stopped_at is not None and now > stopped_at + LATE:
            raise FailedPreconditionError(
                f"experiment {self.experiment.label} ended at {stopped_at:%Y-%m-%dT%H:%M:%SZ} and "
                f"took outcomes for {LATE.days} days after that; outcome {outcome.key!r} is too "
                "late"
            )
        at = now if outcome.at is None else outcome.at
        if not self.since - MAX_SKEW <= at <= now + MAX_SKEW:
            raise InvalidRequestError(
                f"outcome {outcome.key!r} is of {at.isoformat()}, which is not between its "
                f"subject's first answer ({self.since.isoformat()}) and now ({now.isoformat()}); "
                "set the caller's clock, or leave the time out"
            )
        return max(at, self.since)


def find_units(
    session: Session, name: str, outcomes: Sequence[Outcome], tenant_id: str | None
) -> dict[str, Unit]:
    """The unit of each outcome by its key, or NotFoundError for the first that has none.

    tenant_id: whose units they may be; None is any tenant's. A subject that met several versions of
    the experiment is of the newest one that it had met by the time of the outcome.
    """
    rows = session.scalars(select(ExperimentRow).where(ExperimentRow.name == name))
    versions = {row.id: experiment_of(row) for row in rows}
    subjects = _exposed(session, versions, {outcome.subject for outcome in outcomes}, tenant_id)
    wanted = {outcome.request_id for outcome in outcomes}
    requests = _measured(session, versions, wanted, tenant_id)
    return {
        outcome.key: _chosen(
            outcome, subjects[outcome.subject] if outcome.subject else requests[outcome.request_id]
        )
        for outcome in outcomes
    }


_Found = defaultdict[str, list[Unit]]
"""Units by the name of their subject or request."""


def _exposed(
    session: Session,
    versions: Mapping[int, Experiment],
    subjects: Collection[str],
    tenant_id: str | None,
) -> _Found:
    query = select(ExposureRow).where(
        ExposureRow.experiment_id.in_(versions), ExposureRow.subject.in_(subjects)
    )
    if tenant_id is not None:
        query = query.where(ExposureRow.tenant_id == tenant_id)
    found: _Found = defaultdict(list)
    for row in session.scalars(query):
        unit = Unit(versions[row.experiment_id], row.tenant_id, row.at, row.id)
        found[row.subject].append(unit)
    return found


def _measured(
    session: Session,
    versions: Mapping[int, Experiment],
    request_ids: Collection[str],
    tenant_id: str | None,
) -> _Found:
    query = select(MeasuredRequestRow).where(
        MeasuredRequestRow.experiment_id.in_(versions),
        MeasuredRequestRow.request_id.in_(request_ids),
        MeasuredRequestRow.is_shadow.is_(False),
    )
    if tenant_id is not None:
        query = query.where(MeasuredRequestRow.tenant_id == tenant_id)
    found: _Found = defaultdict(list)
    for row in session.scalars(query):
        unit = Unit(versions[row.experiment_id], row.tenant_id, row.at, row.exposure_id)
        found[row.request_id].append(unit)
    return found


def _chosen(outcome: Outcome, units: Sequence[Unit]) -> Unit:
    if not units:
        kind, name = (
            ("subject", outcome.subject) if outcome.subject else ("request", outcome.request_id)
        )
        raise NotFoundError(
            f"outcome {outcome.key!r} is of {kind} {name!r:.80}, which this experiment has not "
            "answered; record an outcome after the answer, under the same name"
        )
    if len({unit.tenant_id for unit in units}) > 1:
        raise InvalidRequestError(
            f"subject {outcome.subject!r:.80} is known from several tenants; record its outcomes "
            "with the key of the tenant that asked"
        )
    met = [unit for unit in units if outcome.at is None or unit.since <= outcome.at + MAX_SKEW]
    return max(met or units, key=lambda unit: unit.experiment.version)
