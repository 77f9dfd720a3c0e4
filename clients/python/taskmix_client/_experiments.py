"""What both clients share about experiments: writing messages, and reading experiments. No I/O."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from taskmix.v1 import experiments_pb2 as pb
from taskmix_client.errors import InvalidArgumentError
from taskmix_client.experiments import (
    Arm,
    Experiment,
    ExperimentDesign,
    Guardrail,
    HaltedArm,
    Outcome,
    Promotion,
    ShadowArm,
)
from taskmix_client.options import to_mix

LIMITS: Mapping[str, "pb.GuardrailLimit.ValueType"] = {
    "at_most": pb.GUARDRAIL_LIMIT_AT_MOST,
    "at_least": pb.GUARDRAIL_LIMIT_AT_LEAST,
}
STATUSES: Mapping[int, str] = {
    pb.EXPERIMENT_STATUS_DRAFT: "draft",
    pb.EXPERIMENT_STATUS_RUNNING: "running",
    pb.EXPERIMENT_STATUS_STOPPED: "stopped",
    pb.EXPERIMENT_STATUS_PROMOTED: "promoted",
}


def to_create_request(
    design: ExperimentDesign, ramp_percent: float | None, *, is_new_version: bool
) -> pb.CreateExperimentRequest:
    """Build the request; anything it cannot say is an InvalidArgumentError."""
    try:
        return pb.CreateExperimentRequest(
            design=pb.ExperimentDesign(
                name=design.name,
                salt=design.salt,
                arms=[pb.Arm(**_source(arm), share=arm.share) for arm in design.arms],
                shadows=[pb.ShadowArm(**_source(arm), rate=arm.rate) for arm in design.shadows],
                tenants=design.tenants,
                overrides=design.overrides,
                guardrails=[_to_guardrail(rule) for rule in design.guardrails],
            ),
            ramp_percent=ramp_percent,
            is_new_version=is_new_version,
        )
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(str(error)) from error


def to_record_request(experiment: str, outcomes: Iterable[Outcome]) -> pb.RecordOutcomesRequest:
    """Build the request; a moment without a zone is an InvalidArgumentError."""
    try:
        messages = [_to_outcome(outcome) for outcome in outcomes]
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(str(error)) from error
    return pb.RecordOutcomesRequest(experiment=experiment, outcomes=messages)


def to_experiment(message: pb.Experiment) -> Experiment:
    """Read a version."""
    return Experiment(
        design=_design(message.design),
        version=message.version,
        digest=message.digest,
        status=STATUSES.get(message.status, "unknown"),
        ramp_percent=message.ramp_percent,
        halted=tuple(_halted(halt) for halt in message.halted),
        why=message.why,
        promotion=_promotion(message.promotion) if message.HasField("promotion") else None,
        created_at=_moment(message, "created_at"),
        started_at=_moment(message, "started_at"),
        stopped_at=_moment(message, "stopped_at"),
    )


def _source(arm: Arm | ShadowArm) -> dict[str, Any]:
    if (arm.mix is None) == (arm.mix_name is None):
        raise InvalidArgumentError(f"arm {arm.name!r} needs a mix or a mix_name: one of them")
    if arm.mix is None:
        return {"name": arm.name, "mix_name": arm.mix_name}
    return {"name": arm.name, "mix": to_mix(arm.mix)}


def _to_guardrail(rule: Guardrail) -> pb.Guardrail:
    if rule.limit not in LIMITS:
        raise InvalidArgumentError(
            f"a guardrail's limit is at_most or at_least, got {rule.limit!r:.40}"
        )
    return pb.Guardrail(
        metric=rule.metric,
        limit=LIMITS[rule.limit],
        bound=rule.bound,
        is_relative=rule.is_relative,
        quantile=rule.quantile,
        alpha=rule.alpha,
    )


def _to_outcome(outcome: Outcome) -> pb.Outcome:
    units = {"subject": outcome.subject, "request_id": outcome.request_id}
    given: dict[str, Any] = {name: value for name, value in units.items() if value is not None}
    if len(given) != 1:
        raise InvalidArgumentError("an outcome is of a subject or of a request: give one of them")
    message = pb.Outcome(key=outcome.key, metric=outcome.metric, value=outcome.value, **given)
    if outcome.at is not None:
        if outcome.at.tzinfo is None:
            raise InvalidArgumentError("at needs a zone, such as datetime.UTC")
        message.at.FromDatetime(outcome.at)
    return message


def _design(message: pb.ExperimentDesign) -> ExperimentDesign:
    limits = {number: limit for limit, number in LIMITS.items()}
    return ExperimentDesign(
        name=message.name,
        arms=tuple(
            Arm(arm.name, arm.mix.expression, arm.share, mix_digest=arm.mix_digest)
            for arm in message.arms
        ),
        salt=message.salt,
        shadows=tuple(
            ShadowArm(arm.name, arm.mix.expression, arm.rate, mix_digest=arm.mix_digest)
            for arm in message.shadows
        ),
        tenants=tuple(message.tenants),
        overrides=dict(message.overrides),
        guardrails=tuple(
            Guardrail(
                rule.metric,
                limits.get(rule.limit, "unknown"),
                rule.bound,
                rule.is_relative,
                rule.quantile if rule.HasField("quantile") else None,
                rule.alpha if rule.HasField("alpha") else None,
            )
            for rule in message.guardrails
        ),
    )


def _halted(message: pb.HaltedArm) -> HaltedArm:
    return HaltedArm(message.arm, message.at.ToDatetime(tzinfo=UTC), message.why)


def _promotion(message: pb.Promotion) -> Promotion:
    before = message.before_json if message.HasField("before_json") else None
    return Promotion(message.arm, message.mix_name, before)


def _moment(message: pb.Experiment, field: Any) -> datetime | None:
    if not message.HasField(field):
        return None
    stamp: Timestamp = getattr(message, field)
    return stamp.ToDatetime(tzinfo=UTC)
