"""What the database holds against the arms of an experiment."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import ColumnElement, and_, case, func, or_, select
from sqlalchemy.orm import Session

from taskmix_server.database import Database
from taskmix_server.database.models import ExposureRow, MeasuredRequestRow
from taskmix_server.experiments.experiment import Experiment
from taskmix_server.experiments.guardrail import Evidence, Rule, check
from taskmix_server.experiments.metric import Metric
from taskmix_server.experiments.observations import Observations, is_answer, observe
from taskmix_server.experiments.results import summary
from taskmix_server.experiments.statistics.quantile import Quantile
from taskmix_server.experiments.statistics.rate import Rate


@dataclass(frozen=True, slots=True)
class Breach:
    """An arm that has broken a rule, and the numbers that say so."""

    arm: str
    why: str


def breaches(
    database: Database, experiment: Experiment, since: datetime | None = None
) -> list[Breach]:
    """The arms that have broken a rule of theirs and still answer, each once. Blocks.

    Requests of overridden subjects are no evidence, as nobody drew them: whoever tests an arm by
    hand may well be looking for what breaks it.

    since: error rates and quantiles look at requests that ended after this moment only, so that a
    long good record does not outweigh what happens now; None looks at all of them.
    """
    with database.reading() as session:
        reader = _Reader(session, experiment, since)
        found = (reader.breach(arm.name) for arm in experiment.design.arms)
        return [breach for breach in found if breach is not None]


class _Reader:
    """Evidence of one experiment; what several rules need is read once, and only if one does."""

    def __init__(self, session: Session, experiment: Experiment, since: datetime | None) -> None:
        self._session = session
        self._experiment = experiment
        self._since = since
        self._observed: Observations | None = None
        self._read: dict[tuple[str, str], _Values] = {}

    def breach(self, arm: str) -> Breach | None:
        """The first rule that an arm has broken; what is relative cannot be broken by the control.

        An arm without any observation breaks nothing, and nothing is relative to a control without.
        """
        design = self._experiment.design
        if self._experiment.is_halted(arm):
            return None
        for rule in design.guardrails:
            if rule.is_relative and arm == design.control.name:
                continue
            own = self._evidence(rule, arm)
            base = self._evidence(rule, design.control.name) if rule.is_relative else None
            if own is None or (rule.is_relative and base is None):
                continue
            verdict = check(rule, own, base)
            if verdict.is_breached:
                return Breach(arm, verdict.why)
        return None

    def _evidence(self, rule: Rule, arm: str) -> Evidence | None:
        if rule.quantile is not None:
            values = self._values(rule.metric, arm)
            return Quantile(values, rule.quantile) if len(values) else None
        if rule.metric == "error_rate":
            return self._error_rate(arm)
        if self._observed is None:
            self._observed = observe(self._session, self._experiment.id)
        return self._summary(self._observed, Metric.parse(rule.metric), arm)

    def _values(self, metric: str, arm: str) -> "_Values":
        """Every answer's value of a metric that requests have."""
        if (metric, arm) not in self._read:
            query = select(_COLUMNS[metric]).where(self._of(arm), is_answer())
            rows = self._session.connection().scalars(query)  # one by one: a record can be long
            self._read[metric, arm] = np.fromiter(rows, np.float64)
        return self._read[metric, arm]

    def _error_rate(self, arm: str) -> Rate | None:
        errors = func.sum(case((MeasuredRequestRow.error != "", 1), else_=0))
        row = self._session.execute(select(errors, func.count()).where(self._of(arm))).one()
        return Rate(int(row[0]), row[1]) if row[1] else None

    def _summary(self, observed: Observations, metric: Metric, arm: str) -> Evidence | None:
        """None while nobody has reported the metric."""
        if not {metric.of, metric.per} <= observed.columns.keys():
            return None
        found = summary(observed, arm, metric)
        return found if found.count else None

    def _of(self, arm: str) -> ColumnElement[bool]:
        row, experiment = MeasuredRequestRow, self._experiment
        of_arm = and_(row.experiment_id == experiment.id, row.arm == arm, row.is_shadow.is_(False))
        if self._since is not None:
            of_arm = and_(of_arm, row.at >= self._since)
        if not experiment.design.overrides:
            return of_arm
        overridden = select(ExposureRow.id).where(
            ExposureRow.experiment_id == experiment.id, ExposureRow.is_override
        )
        return and_(of_arm, or_(row.exposure_id.is_(None), row.exposure_id.not_in(overridden)))


_Values = npt.NDArray[np.float64]

_COLUMNS: Mapping[str, Any] = {
    "latency_s": MeasuredRequestRow.latency_s,
    "ttft_s": func.coalesce(MeasuredRequestRow.ttft_s, MeasuredRequestRow.latency_s),
    "tokens": MeasuredRequestRow.num_tokens,
}
"""What quantiles may be of."""
