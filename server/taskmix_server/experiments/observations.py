"""What the database holds of an experiment's subjects, as one row of numbers for each."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, Executable, and_, case, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from taskmix_server.database.models import ExposureRow, MeasuredRequestRow, OutcomeRow
from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.metric import SUBJECTS
from taskmix_server.experiments.outcome import BUILT_IN, CANCELLED, COUNT_SUFFIX

Column = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Observations:
    """Subjects that were drawn into an experiment, in the order in which they came.

    arms: of each subject, text [subjects]. columns: by name, float [subjects]: what was summed over
    each subject's requests or outcomes, 0 for those without.
    """

    arms: npt.NDArray[np.str_]
    columns: Mapping[str, Column]

    def of(self, arm: str, column: str) -> Column:
        """A column for the subjects of one arm; InvalidRequestError if there is no such column."""
        if column not in self.columns:
            known = ", ".join(sorted(self.columns))
            raise InvalidRequestError(f"nothing is known of {column!r:.80}; there is {known}")
        values: Column = self.columns[column][self.arms == arm]
        return values

    def knowing(self, other: "Observations") -> "Observations":
        """With the columns of later observations, zero in those that it does not have."""
        zeros = {name: np.zeros(len(self.arms)) for name in other.columns}
        return replace(self, columns={**zeros, **self.columns})

    @property
    def reported(self) -> tuple[str, ...]:
        """The metrics that callers reported, sorted."""
        own = {SUBJECTS, *BUILT_IN}
        names = self.columns.keys() - own
        return tuple(sorted(name for name in names if not name.endswith(COUNT_SUFFIX)))


def observe(session: Session, experiment_id: int, before: datetime | None = None) -> Observations:
    """Read everything that subject-level statistics may use of a version.

    before: leaves out the subjects that came, the requests that ended and the outcomes that came
    about from this moment on.
    """
    drawn = session.execute(_drawn(experiment_id, before)).all()
    places = {row[0]: place for place, row in enumerate(drawn)}
    columns: defaultdict[str, Column] = defaultdict(lambda: np.zeros(len(drawn)))
    columns[SUBJECTS] = np.ones(len(drawn))
    for name in BUILT_IN:
        columns[name] = np.zeros(len(drawn))
    for row in session.execute(_request_sums(experiment_id, before)):
        _put(columns, places, row[0], dict(zip(BUILT_IN, row[1:], strict=True)))
    for exposure_id, metric, total, count in session.execute(_outcome_sums(experiment_id, before)):
        _put(columns, places, exposure_id, {metric: total, f"{metric}{COUNT_SUFFIX}": count})
    return Observations(np.array([row[1] for row in drawn], dtype=np.str_), dict(columns))


def num_exposed(session: Session, experiment_id: int, before: datetime | None) -> dict[str, int]:
    """Drawn subjects by arm, those only that came before a moment if one is given."""
    query = (
        select(ExposureRow.arm, func.count())
        .where(
            ExposureRow.experiment_id == experiment_id,
            ExposureRow.is_override.is_(False),
            *_until(ExposureRow.at, before),
        )
        .group_by(ExposureRow.arm)
    )
    return {row[0]: row[1] for row in session.execute(query)}


def num_requests(session: Session, experiment_id: int) -> dict[str, tuple[int, int]]:
    """Requests by arm: all of them, and those that named no subject."""
    without = func.sum(case((MeasuredRequestRow.exposure_id.is_(None), 1), else_=0))
    query = (
        select(MeasuredRequestRow.arm, func.count(), without)
        .where(_is_of(experiment_id, is_shadow=False))
        .group_by(MeasuredRequestRow.arm)
    )
    return {arm: (count, alone) for arm, count, alone in session.execute(query)}


def shadow_means(session: Session, experiment_id: int) -> Sequence[Any]:
    """By shadow arm: its name, requests, errors, agreement, log-probability, tokens, served tokens.

    Tokens are of answers alone, and of what was served to the same requests.
    """
    is_error = case((MeasuredRequestRow.error != "", 1.0), else_=0.0)
    tokens = case((MeasuredRequestRow.error == "", MeasuredRequestRow.num_tokens))
    query = (
        select(
            MeasuredRequestRow.arm,
            func.count(),
            func.avg(is_error),
            func.avg(MeasuredRequestRow.agreement),
            func.avg(MeasuredRequestRow.served_logprob),
            func.coalesce(func.avg(tokens), 0.0),
            func.coalesce(func.avg(MeasuredRequestRow.served_tokens), 0.0),
        )
        .where(_is_of(experiment_id, is_shadow=True))
        .group_by(MeasuredRequestRow.arm)
        .order_by(MeasuredRequestRow.arm)
    )
    return session.execute(query).all()


def is_answer() -> ColumnElement[bool]:
    """What became of a request: neither an error nor left by its caller."""
    return and_(MeasuredRequestRow.error == "", MeasuredRequestRow.finish_reason != CANCELLED)


def _put(
    columns: defaultdict[str, Column],
    places: Mapping[int, int],
    exposure_id: int,
    sums: Mapping[str, float],
) -> None:
    place = places.get(exposure_id)
    if place is not None:  # overridden subjects are left out
        for name, total in sums.items():
            columns[name][place] = total


def _drawn(experiment_id: int, before: datetime | None) -> Executable:
    return (
        select(ExposureRow.id, ExposureRow.arm)
        .where(
            ExposureRow.experiment_id == experiment_id,
            ExposureRow.is_override.is_(False),
            *_until(ExposureRow.at, before),
        )
        .order_by(ExposureRow.id)
    )


def _request_sums(experiment_id: int, before: datetime | None) -> Executable:
    """The sums that `BUILT_IN` names, in its order, by exposure.

    Times and tokens are of answers alone: what failed early would look fast.
    """
    row = MeasuredRequestRow
    answered = is_answer()
    return (
        select(
            row.exposure_id,
            func.count(),
            _sum_where(answered, 1.0),
            _sum_where(row.error != "", 1.0),
            _sum_where(answered, row.latency_s),
            _sum_where(answered, func.coalesce(row.ttft_s, row.latency_s)),
            _sum_where(answered, row.num_tokens),
            _sum_where(and_(answered, row.finish_reason == "length"), 1.0),
        )
        .where(
            _is_of(experiment_id, is_shadow=False),
            row.exposure_id.is_not(None),
            *_until(row.at, before),
        )
        .group_by(row.exposure_id)
    )


def _sum_where(condition: ColumnElement[bool], value: Any) -> ColumnElement[float]:
    return func.sum(case((condition, value), else_=0.0))


def _outcome_sums(experiment_id: int, before: datetime | None) -> Executable:
    row = OutcomeRow
    return (
        select(row.exposure_id, row.metric, func.sum(row.value), func.count())
        .where(
            row.experiment_id == experiment_id,
            row.exposure_id.is_not(None),
            *_until(row.at, before),
        )
        .group_by(row.exposure_id, row.metric)
    )


def _until(
    at: InstrumentedAttribute[datetime], before: datetime | None
) -> tuple[ColumnElement[bool], ...]:
    return () if before is None else (at < before,)


def _is_of(experiment_id: int, *, is_shadow: bool) -> ColumnElement[bool]:
    return and_(
        MeasuredRequestRow.experiment_id == experiment_id,
        MeasuredRequestRow.is_shadow.is_(is_shadow),
    )
