"""Messages about experiments to values and back."""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from taskmix.v1 import common_pb2
from taskmix.v1 import experiments_pb2 as pb
from taskmix_composer.mix import Mix
from taskmix_composer.recipe import Recipe
from taskmix_server.domain.generation import NamedMix
from taskmix_server.domain.limits import check_count
from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.design import (
    MAX_ARMS,
    MAX_GUARDRAILS,
    MAX_SHADOWS,
    Arm,
    Design,
    Shadow,
)
from taskmix_server.experiments.experiment import Experiment, Halt, Promotion, Status
from taskmix_server.experiments.guardrail import Limit, Rule
from taskmix_server.experiments.outcome import Outcome
from taskmix_server.rpc.convert import to_mix
from taskmix_server.services.drafts import Candidate, Draft

_STATUSES: Mapping[Status, pb.ExperimentStatus.ValueType] = {
    Status.DRAFT: pb.EXPERIMENT_STATUS_DRAFT,
    Status.RUNNING: pb.EXPERIMENT_STATUS_RUNNING,
    Status.STOPPED: pb.EXPERIMENT_STATUS_STOPPED,
    Status.PROMOTED: pb.EXPERIMENT_STATUS_PROMOTED,
}
_LIMITS: Mapping[Limit, pb.GuardrailLimit.ValueType] = {
    Limit.AT_MOST: pb.GUARDRAIL_LIMIT_AT_MOST,
    Limit.AT_LEAST: pb.GUARDRAIL_LIMIT_AT_LEAST,
}
_LIMIT_OF = {message: limit for limit, message in _LIMITS.items()}


def to_draft(request: pb.CreateExperimentRequest) -> Draft:
    """Raises InvalidRequestError or InvalidMixError."""
    design = request.design
    check_count(len(design.arms), MAX_ARMS, "arms")
    check_count(len(design.shadows), MAX_SHADOWS, "shadow arms")
    check_count(len(design.guardrails), MAX_GUARDRAILS, "guardrails")
    return Draft(
        name=design.name,
        arms=tuple(Candidate(arm.name, _source(arm), arm.share) for arm in design.arms),
        salt=design.salt,
        shadows=tuple(Candidate(arm.name, _source(arm), arm.rate) for arm in design.shadows),
        tenants=tuple(design.tenants),
        overrides=tuple(design.overrides.items()),
        guardrails=tuple(map(_to_rule, design.guardrails)),
        ramp=request.ramp_percent if request.HasField("ramp_percent") else 100.0,
    )


def to_outcome(message: pb.Outcome) -> Outcome:
    """Raises InvalidRequestError."""
    return Outcome(
        key=message.key,
        metric=message.metric,
        value=message.value,
        subject=message.subject,
        request_id=message.request_id,
        at=_moment(message.at) if message.HasField("at") else None,
    )


def to_experiment_message(experiment: Experiment) -> pb.Experiment:
    return pb.Experiment(
        design=_design(experiment.design),
        version=experiment.version,
        digest=experiment.design.digest,
        status=_STATUSES[experiment.status],
        ramp_percent=experiment.ramp,
        halted=map(_halted, experiment.halted),
        why=experiment.why,
        promotion=_promotion(experiment.promotion),
        created_at=_timestamp(experiment.created_at),
        started_at=_timestamp(experiment.started_at),
        stopped_at=_timestamp(experiment.stopped_at),
    )


def _source(arm: pb.Arm | pb.ShadowArm) -> Mix | Recipe | NamedMix:
    match arm.WhichOneof("source"):
        case "mix_name":
            return NamedMix(arm.mix_name)
        case "mix":
            return to_mix(arm.mix)
    raise InvalidRequestError(f"arm {arm.name!r:.80} has no mix; set mix or mix_name")


def _to_rule(message: pb.Guardrail) -> Rule:
    limit = _LIMIT_OF.get(message.limit)
    if limit is None:
        raise InvalidRequestError(
            f"the guardrail of {message.metric!r:.80} has no limit; set at most or at least"
        )
    given: dict[str, Any] = {
        name: getattr(message, name) for name in ("quantile", "alpha") if message.HasField(name)
    }
    return Rule(message.metric, limit, message.bound, message.is_relative, **given)


def _design(design: Design) -> pb.ExperimentDesign:
    return pb.ExperimentDesign(
        name=design.name,
        salt=design.salt,
        arms=[pb.Arm(**_pinned(arm), share=float(arm.share)) for arm in design.arms],
        shadows=[pb.ShadowArm(**_pinned(arm), rate=arm.rate) for arm in design.shadows],
        tenants=design.tenants,
        overrides=dict(design.overrides),
        guardrails=map(_guardrail, design.guardrails),
    )


def _pinned(arm: Arm | Shadow) -> dict[str, Any]:
    mix = common_pb2.Mix(expression=arm.mix.canonical_json())
    return {"name": arm.name, "mix": mix, "mix_digest": arm.mix_digest}


def _guardrail(rule: Rule) -> pb.Guardrail:
    return pb.Guardrail(**{**asdict(rule), "limit": _LIMITS[rule.limit]})


def _halted(halt: Halt) -> pb.HaltedArm:
    return pb.HaltedArm(arm=halt.arm, at=_timestamp(halt.at), why=halt.why)


def _promotion(promotion: Promotion | None) -> pb.Promotion | None:
    if promotion is None:
        return None
    before = None if promotion.before is None else promotion.before.canonical_json()
    return pb.Promotion(arm=promotion.arm, mix_name=promotion.mix_name, before_json=before)


def _moment(message: Timestamp) -> datetime:
    try:
        return message.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise InvalidRequestError(f"at is not a moment: {error}") from error


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message
