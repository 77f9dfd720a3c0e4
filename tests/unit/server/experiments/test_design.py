"""What an experiment may compare, and what its versions may become."""

import json
from decimal import Decimal
from typing import Any

import pytest

from taskmix_composer.mix import Mix
from taskmix_server.errors import FailedPreconditionError, InvalidRequestError, NotFoundError
from taskmix_server.experiments.design import Arm, Design, Shadow, digest_of
from taskmix_server.experiments.experiment import TRANSITIONS, Experiment, Status, Step
from taskmix_server.experiments.guardrail import Limit, Rule
from tests.unit.server.experiments.designs import CODE, MATH, design

FULL = design(
    "tone",
    *(0.7, 0.3),
    salt="pepper",
    shadows=(Shadow("next", Mix.parse("code"), "digest of next", 0.25),),
    tenants=("team-*", "alice"),
    overrides=(("tester", "mixed"),),
    guardrails=(Rule("latency_s", Limit.AT_MOST, 1.5, is_relative=True, quantile=0.95),),
)


def test_a_design_is_the_same_after_json() -> None:
    text = FULL.canonical_json()
    again = Design.from_json(json.loads(text))
    assert again == FULL
    assert again.canonical_json() == text
    assert FULL.digest == digest_of(text)


def test_golden_digest() -> None:
    """Versions that are stored must be readable by every later release."""
    assert design().canonical_json() == (
        '{"arms":[{"mix":{"terms":[{"coefficient":1.0,"task":"math"}]},'
        '"mix_digest":"digest of math:1.0","name":"control","share":"0.5"},'
        '{"mix":{"terms":[{"coefficient":0.4,"task":"code"},{"coefficient":0.6,"task":"math"}]},'
        '"mix_digest":"digest of code:0.4+math:0.6","name":"mixed","share":"0.5"}],'
        '"guardrails":[],"name":"tone","overrides":[],"salt":"tone","shadows":[],"tenants":["*"]}'
    )


@pytest.mark.parametrize(
    "changed",
    [
        design("tone", 0.6, 0.4),
        design("tone", salt="other"),
        design("tone", tenants=("alice",)),
        design("tone", overrides=(("tester", "mixed"),)),
        Design("tone", (Arm("control", MATH, "other content", 0.5), design().arms[1])),
    ],
)
def test_every_part_is_in_the_digest(changed: Design) -> None:
    assert changed.digest != design().digest


def test_what_it_is_made_of() -> None:
    assert FULL.control.name == "control"
    assert FULL.tasks == {"math", "code"}
    assert [arm.share for arm in FULL.arms] == [Decimal("0.7"), Decimal("0.3")]
    assert FULL.is_for("team-a")
    assert FULL.is_for("alice")
    assert not FULL.is_for("bob")
    with pytest.raises(NotFoundError, match="has no arm 'next'; it has control, mixed"):
        FULL.arm("next")


def test_overrides_and_the_ramp_reach_the_split() -> None:
    assert FULL.split(0.0).assign("tester").arm == "mixed"
    assert FULL.split(0.0).assign("anybody").arm is None
    assert FULL.split(100.0).assign("anybody").arm is not None


ARM = {"mix": MATH, "mix_digest": "d"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": ()}, "sum to"),
        ({"arms": (Arm("a", share=0.5, **ARM), Arm("b", share=0.4, **ARM))}, "sum to 0.9"),
        ({"arms": (Arm("a", share=float("nan"), **ARM),)}, "share"),
        ({"arms": (Arm("a", share=-1.0, **ARM), Arm("b", share=2.0, **ARM))}, "share"),
        ({"arms": (Arm("a", share=0.5, **ARM), Arm("a", share=0.5, **ARM))}, "share a name"),
        ({"arms": tuple(Arm(f"a{n}", share=1 / 17, **ARM) for n in range(17))}, "at most 16 arms"),
        ({"name": "Tone"}, "cannot name an experiment"),
        ({"name": ""}, "cannot name an experiment"),
        ({"overrides": (("x", "nosuch"),)}, "nosuch"),
        ({"overrides": (("x" * 257, "control"),)}, "256 characters"),
        ({"tenants": ("no spaces",)}, "not a glob"),
        (
            {"guardrails": (Rule("rating", Limit.AT_LEAST, 0.5, quantile=0.5),)},
            "only latency_s, ttft_s, tokens have",
        ),
        ({"guardrails": (Rule("a/b/c", Limit.AT_LEAST, 0.5),)}, "is not a metric"),
        ({"shadows": (Shadow("control", MATH, "d", 0.5),)}, "share a name"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        Design(**{"name": "tone", "arms": design().arms, **fields})


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_shadow_samples_a_share(rate: float) -> None:
    with pytest.raises(InvalidRequestError, match="samples"):
        Shadow("next", CODE, "d", rate)


@pytest.mark.parametrize("ramp", [-1.0, 100.1, float("nan"), float("inf")])
def test_the_ramp_is_a_percentage(ramp: float) -> None:
    with pytest.raises(InvalidRequestError, match="percentage"):
        Experiment(design(), ramp=ramp)


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("step", Step)
def test_a_step_is_in_the_table_or_refused(status: Status, step: Step) -> None:
    experiment = Experiment(design(), status=status)
    if (status, step) in TRANSITIONS:
        assert experiment.after(step) is TRANSITIONS[status, step]
    else:
        with pytest.raises(FailedPreconditionError, match=rf"tone@1 is {status}: it cannot be .*;"):
            experiment.after(step)
