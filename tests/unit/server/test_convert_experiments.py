"""Messages about experiments that say too little."""

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from taskmix.v1 import common_pb2
from taskmix.v1 import experiments_pb2 as pb
from taskmix_composer.mix import Mix
from taskmix_server.domain.generation import NamedMix
from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.design import MAX_ARMS, MAX_GUARDRAILS, MAX_SHADOWS
from taskmix_server.rpc.convert_experiments import to_draft, to_outcome
from taskmix_server.services.drafts import Candidate

MATH = common_pb2.Mix(expression="math")


def request(**fields: object) -> pb.CreateExperimentRequest:
    return pb.CreateExperimentRequest(design=pb.ExperimentDesign(name="tone", **fields))


def test_what_is_absent_has_defaults() -> None:
    draft = to_draft(request(arms=[pb.Arm(name="a", mix=MATH), pb.Arm(name="b", mix_name="prod")]))
    assert draft.arms == (
        Candidate("a", Mix.parse("math"), 0.0),
        Candidate("b", NamedMix("prod"), 0.0),
    )
    assert (draft.salt, draft.shadows, draft.tenants, draft.ramp) == ("", (), (), 100.0)
    none = request(arms=[pb.Arm(name="a", mix=common_pb2.Mix())])
    assert to_draft(none).arms[0].source == Mix()
    none.ramp_percent = 0.0
    assert to_draft(none).ramp == 0.0


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (request(arms=[pb.Arm(name="a")]), "arm 'a' has no mix"),
        (request(shadows=[pb.ShadowArm(name="s", rate=1.0)]), "arm 's' has no mix"),
        (request(guardrails=[pb.Guardrail(metric="rating")]), "'rating' has no limit"),
    ],
    ids=["arm", "shadow", "guardrail"],
)
def test_what_is_missing(message: pb.CreateExperimentRequest, expected: str) -> None:
    with pytest.raises(InvalidRequestError, match=expected):
        to_draft(message)


def test_outcomes() -> None:
    good = pb.Outcome(key="k", metric="rating", value=1.0, subject="ann")
    assert to_outcome(good).at is None
    good.at.CopyFrom(Timestamp(seconds=0))
    assert to_outcome(good).at is not None  # 1970, which is for the experiment to refuse
    for seconds in (10**13, -(10**13)):
        good.at.CopyFrom(Timestamp(seconds=seconds))
        with pytest.raises(InvalidRequestError, match="at is not a moment"):
            to_outcome(good)
    with pytest.raises(InvalidRequestError, match="a subject or a request"):
        to_outcome(pb.Outcome(key="k", metric="rating", value=1.0))


@pytest.mark.parametrize(
    ("field", "most"),
    [("arms", MAX_ARMS), ("shadows", MAX_SHADOWS), ("guardrails", MAX_GUARDRAILS)],
)
def test_too_many_are_refused_before_they_are_looked_at(field: str, most: int) -> None:
    """None of them is valid, and it is their number that is refused."""
    crowded = request()
    for _ in range(most + 1):
        getattr(crowded.design, field).add()
    with pytest.raises(InvalidRequestError, match=f"at most {most} .*, got {most + 1}"):
        to_draft(crowded)
