"""An experiment's version as a row, and a row as an experiment's version."""

from dataclasses import asdict
from datetime import datetime
from json import loads
from typing import Any

from taskmix_composer.mix import Mix
from taskmix_server.database.models import ExperimentRow
from taskmix_server.errors import FailedPreconditionError
from taskmix_server.experiments.design import Design, digest_of
from taskmix_server.experiments.experiment import Experiment, Halt, Promotion, Status
from taskmix_server.tenancy.audit import State


def fill(row: ExperimentRow, experiment: Experiment) -> None:
    """Let a row say what is true of an experiment's version; its id stays."""
    row.design = experiment.design.canonical_json()
    row.digest = experiment.design.digest
    row.status = experiment.status
    row.ramp = experiment.ramp
    row.halted = [{**asdict(halt), "at": halt.at.isoformat()} for halt in experiment.halted]
    row.why = experiment.why
    row.promotion = _promotion_json(experiment.promotion)
    assert experiment.created_at is not None, "the store says when"
    row.created_at = experiment.created_at
    row.started_at = experiment.started_at
    row.stopped_at = experiment.stopped_at


def experiment_of(row: ExperimentRow) -> Experiment:
    """Read a version; FailedPreconditionError if its design is not the one that was made."""
    if digest_of(row.design) != row.digest:
        raise FailedPreconditionError(
            f"experiment {row.name}@{row.version} was changed behind the server's back: its design "
            "does not have its digest; restore the database, or create it under another name"
        )
    return Experiment(
        design=Design.from_json(loads(row.design)),
        version=row.version,
        status=Status(row.status),
        ramp=row.ramp,
        halted=tuple(_halt_of(halt) for halt in row.halted),
        why=row.why,
        promotion=_promotion_of(row.promotion),
        created_at=row.created_at,
        started_at=row.started_at,
        stopped_at=row.stopped_at,
        id=row.id,
    )


def _halt_of(form: dict[str, Any]) -> Halt:
    return Halt(form["arm"], datetime.fromisoformat(form["at"]), form["why"])


def _promotion_json(promotion: Promotion | None) -> dict[str, Any] | None:
    if promotion is None:
        return None
    before = promotion.before.canonical_json() if promotion.before is not None else None
    return {"arm": promotion.arm, "mix_name": promotion.mix_name, "before": before}


def _promotion_of(form: dict[str, Any] | None) -> Promotion | None:
    if form is None:
        return None
    before = None if form["before"] is None else Mix.parse(form["before"])
    return Promotion(form["arm"], form["mix_name"], before)


def state_of(experiment: Experiment) -> State:
    """What the audit log keeps of a version."""
    return {**experiment.state(), "promotion": _promotion_json(experiment.promotion)}
