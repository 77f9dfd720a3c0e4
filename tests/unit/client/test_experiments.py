"""Experiments, outcomes and results through both clients."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from taskmix.v1 import common_pb2
from taskmix.v1 import experiments_pb2 as pb
from taskmix_client import (
    Arm,
    ArmTraffic,
    Comparison,
    Estimate,
    Experiment,
    ExperimentDesign,
    Guardrail,
    HaltedArm,
    Interval,
    InvalidArgumentError,
    MetricResult,
    Outcome,
    Promotion,
    Recorded,
    Results,
    SampleRatio,
    ShadowArm,
    ShadowResult,
)
from taskmix_client.config import REPEATABLE
from tests.unit.client.scripted import Script

MOMENT = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)
STAMP = Timestamp(seconds=int(MOMENT.timestamp()))

DESIGN = ExperimentDesign(
    "tone",
    (Arm("control", "math", 0.75), Arm("mixed", "code", 0.25)),
    salt="pepper",
    shadows=(ShadowArm("next", "law", 0.5),),
    tenants=("team-*",),
    overrides={"tester": "mixed"},
    guardrails=(
        Guardrail("latency_s", "at_most", 1.5, is_relative=True, quantile=0.95, alpha=0.02),
        Guardrail("rating", "at_least", 0.5),
    ),
)
DESIGN_MESSAGE = pb.ExperimentDesign(
    name="tone",
    salt="pepper",
    arms=[
        pb.Arm(name="control", mix=common_pb2.Mix(expression="math"), share=0.75),
        pb.Arm(name="mixed", mix=common_pb2.Mix(expression="code"), share=0.25),
    ],
    shadows=[pb.ShadowArm(name="next", mix=common_pb2.Mix(expression="law"), rate=0.5)],
    tenants=["team-*"],
    overrides={"tester": "mixed"},
    guardrails=[
        pb.Guardrail(
            metric="latency_s",
            limit=pb.GUARDRAIL_LIMIT_AT_MOST,
            bound=1.5,
            is_relative=True,
            quantile=0.95,
            alpha=0.02,
        ),
        pb.Guardrail(metric="rating", limit=pb.GUARDRAIL_LIMIT_AT_LEAST, bound=0.5),
    ],
)
TONE = Experiment(
    DESIGN,
    2,
    "d1",
    "promoted",
    50.0,
    (HaltedArm("mixed", MOMENT, "too slow"),),
    "enough",
    Promotion("mixed", "prod", None),
    MOMENT,
    MOMENT,
    None,
)
MESSAGE = pb.Experiment(
    design=DESIGN_MESSAGE,
    version=2,
    digest="d1",
    status=pb.EXPERIMENT_STATUS_PROMOTED,
    ramp_percent=50.0,
    halted=[pb.HaltedArm(arm="mixed", at=STAMP, why="too slow")],
    why="enough",
    promotion=pb.Promotion(arm="mixed", mix_name="prod"),
    created_at=STAMP,
    started_at=STAMP,
)

CALLS: dict[str, tuple[str, Any, Any]] = {
    "create_experiment": (
        "CreateExperiment",
        lambda client: client.create_experiment(DESIGN),
        pb.CreateExperimentRequest(design=DESIGN_MESSAGE),
    ),
    "new version": (
        "CreateExperiment",
        lambda client: client.create_experiment(DESIGN, ramp_percent=0.0, is_new_version=True),
        pb.CreateExperimentRequest(design=DESIGN_MESSAGE, ramp_percent=0.0, is_new_version=True),
    ),
    "experiment": (
        "GetExperiment",
        lambda client: client.experiment("tone"),
        pb.GetExperimentRequest(name="tone"),
    ),
    "version": (
        "GetExperiment",
        lambda client: client.experiment("tone", 2),
        pb.GetExperimentRequest(name="tone", version=2),
    ),
    "start": (
        "StartExperiment",
        lambda client: client.start_experiment("tone"),
        pb.StartExperimentRequest(name="tone"),
    ),
    "ramp": (
        "RampExperiment",
        lambda client: client.ramp_experiment("tone", 25.0),
        pb.RampExperimentRequest(name="tone", percent=25.0),
    ),
    "stop": (
        "StopExperiment",
        lambda client: client.stop_experiment("tone", arm="mixed", why="slow"),
        pb.StopExperimentRequest(name="tone", arm="mixed", why="slow"),
    ),
    "promote": (
        "PromoteExperiment",
        lambda client: client.promote_experiment("tone", "mixed", "prod", 1),
        pb.PromoteExperimentRequest(name="tone", arm="mixed", mix_name="prod", version=1),
    ),
    "rollback": (
        "RollbackExperiment",
        lambda client: client.rollback_experiment("tone"),
        pb.RollbackExperimentRequest(name="tone"),
    ),
}


@pytest.mark.parametrize("call", CALLS)
def test_verbs(client: Any, script: Script, call: str) -> None:
    method, ask, expected = CALLS[call]
    script.answer(method, lambda *_: getattr(pb, f"{method}Response")(experiment=MESSAGE))
    assert ask(client) == TONE
    assert script.requests == [expected]


def test_listing(client: Any, script: Script) -> None:
    script.answer(
        "ListExperiments", lambda *_: pb.ListExperimentsResponse(experiments=[MESSAGE] * 2)
    )
    assert client.experiments() == (TONE, TONE)
    assert TONE.name == "tone"


def test_outcomes(client: Any, script: Script) -> None:
    script.answer("RecordOutcomes", lambda *_: pb.RecordOutcomesResponse(num_new=1, num_known=2))
    outcomes = [
        Outcome(metric="rating", value=4.0, subject="ann", key="k1", at=MOMENT),
        Outcome(metric="rating", value=0.0, request_id="r", key="k2"),
    ]
    assert client.record_outcomes("tone", outcomes) == Recorded(1, 2)
    assert script.requests == [
        pb.RecordOutcomesRequest(
            experiment="tone",
            outcomes=[
                pb.Outcome(key="k1", metric="rating", value=4.0, subject="ann", at=STAMP),
                pb.Outcome(key="k2", metric="rating", value=0.0, request_id="r"),
            ],
        )
    ]


def test_every_outcome_has_a_key_of_its_own() -> None:
    keys = {Outcome(metric="rating", value=1.0, subject="ann").key for _ in range(3)}
    assert len(keys) == 3
    assert "" not in keys


COMPARISON = Comparison(0.5, Interval(0.25, 0.75), 0.01, 0.1, Interval(0.05, 0.15), is_ready=True)
RESULTS = Results(
    TONE,
    0.05,
    (ArmTraffic("control", 0.75, 3, 5, 1),),
    SampleRatio(0.5, 0.25, is_mismatch=False),
    (
        MetricResult(
            "rating",
            (Estimate("control", 3, 5.0, None), Estimate("mixed", 2, 5.5, COMPARISON)),
        ),
    ),
    (ShadowResult("next", 4, 0.25, 0.5, None, 8.0, 9.5),),
)
RESPONSE = pb.GetResultsResponse(
    experiment=MESSAGE,
    alpha=0.05,
    traffic=[
        pb.ArmTraffic(arm="control", share=0.75, subjects=3, requests=5, requests_without_subject=1)
    ],
    sample_ratio=pb.SampleRatio(p_value=0.5, chi_square_p_value=0.25),
    metrics=[
        pb.MetricResult(
            metric="rating",
            estimates=[
                pb.ArmEstimate(arm="control", count=3, value=5.0),
                pb.ArmEstimate(
                    arm="mixed",
                    count=2,
                    value=5.5,
                    comparison=pb.ArmComparison(
                        difference=0.5,
                        interval=pb.ConfidenceInterval(low=0.25, high=0.75),
                        p_value=0.01,
                        lift=0.1,
                        lift_interval=pb.ConfidenceInterval(low=0.05, high=0.15),
                        is_ready=True,
                    ),
                ),
            ],
        )
    ],
    shadows=[
        pb.ShadowResult(
            arm="next", requests=4, error_rate=0.25, agreement=0.5, tokens=8.0, served_tokens=9.5
        )
    ],
)


def test_results(client: Any, script: Script) -> None:
    script.answer("GetResults", lambda *_: RESPONSE)
    assert client.experiment_results("tone") == RESULTS
    assert (
        client.experiment_results("tone", version=1, ratios=["a/b"], alpha=0.1).shadows
        == RESULTS.shadows
    )
    assert script.requests == [
        pb.GetResultsRequest(name="tone"),
        pb.GetResultsRequest(name="tone", version=1, ratios=["a/b"], alpha=0.1),
    ]


@pytest.mark.parametrize(
    "design",
    [
        replace(DESIGN, arms=(Arm("a"),)),
        replace(DESIGN, arms=(Arm("a", "math", mix_name="prod"),)),
        replace(DESIGN, guardrails=(Guardrail("rating", "below", 1.0),)),
        replace(DESIGN, overrides={"tester": 1}),
    ],
    ids=["no mix", "two mixes", "limit", "type"],
)
def test_what_a_message_cannot_say(client: Any, design: ExperimentDesign) -> None:
    with pytest.raises(InvalidArgumentError):
        client.create_experiment(design)


def test_what_is_no_outcome(client: Any) -> None:
    good = Outcome(metric="rating", value=1.0, subject="ann")
    for bad in (
        replace(good, subject=None),
        replace(good, request_id="r"),
        replace(good, at=MOMENT.replace(tzinfo=None)),
        replace(good, value="high"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InvalidArgumentError):
            client.record_outcomes("tone", [bad])


def test_steps_are_taken_once() -> None:
    """A repeated one would be refused, though the first one was taken."""
    methods = {m.name for m in pb.DESCRIPTOR.services_by_name["ExperimentService"].methods}
    assert methods - set(REPEATABLE["taskmix.v1.ExperimentService"]) == {
        *("StartExperiment", "StopExperiment", "PromoteExperiment", "RollbackExperiment"),
    }
