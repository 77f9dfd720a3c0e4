"""`taskmix experiments`: what it sends, prints and exits with."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from taskmix.v1 import common_pb2
from taskmix.v1 import experiments_pb2 as pb
from taskmix_server.cli import experiments, main
from tests.unit.client.scripted import Script
from tests.unit.client.test_experiments import DESIGN_MESSAGE, MESSAGE, RESPONSE, STAMP

Run = Callable[..., Result]
TABLE = (
    "experiment  version  status    ramp  arms                      note\n"
    "tone        2        promoted  50 %  control=0.75 mixed=0.25   "
    "mixed was stopped: too slow; mixed is prod\n"
)


@pytest.fixture
def run(script: Script) -> Run:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(
            experiments.experiments, arguments, env={"TASKMIX_SERVER": script.target}
        )

    return invoke


@pytest.fixture
def answering(script: Script) -> Script:
    """Every verb answers with one experiment."""
    for verb in ("Create", "Get", "Start", "Ramp", "Stop", "Promote", "Rollback"):
        response = getattr(pb, f"{verb}ExperimentResponse")(experiment=MESSAGE)
        script.answer(f"{verb}Experiment", lambda *_, response=response: response)
    script.answer("ListExperiments", lambda *_: pb.ListExperimentsResponse(experiments=[MESSAGE]))
    script.answer("RecordOutcomes", lambda *_: pb.RecordOutcomesResponse(num_new=2, num_known=1))
    script.answer("GetResults", lambda *_: RESPONSE)
    return script


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (["list"], pb.ListExperimentsRequest()),
        (["start", "tone"], pb.StartExperimentRequest(name="tone")),
        (["ramp", "tone", "25"], pb.RampExperimentRequest(name="tone", percent=25.0)),
        (
            ["ramp", "tone", "2.5", "--version", "1"],
            pb.RampExperimentRequest(name="tone", percent=2.5, version=1),
        ),
        (["stop", "tone"], pb.StopExperimentRequest(name="tone")),
        (
            ["stop", "tone", "--arm", "mixed", "--why", "slow"],
            pb.StopExperimentRequest(name="tone", arm="mixed", why="slow"),
        ),
        (
            ["promote", "tone", "--arm", "mixed", "--as", "prod"],
            pb.PromoteExperimentRequest(name="tone", arm="mixed", mix_name="prod"),
        ),
        (["rollback", "tone"], pb.RollbackExperimentRequest(name="tone")),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_verbs(run: Run, answering: Script, arguments: list[str], request_: Any) -> None:
    result = run(*arguments)
    assert (result.exit_code, answering.requests) == (0, [request_])
    assert " ".join(result.stdout.split()) == " ".join(TABLE.split())


def test_a_whole_design(run: Run, answering: Script) -> None:
    result = run(
        *("create", "tone", "--arm", "control=math", "--arm", "mixed=code"),
        *("--share", "mixed=0.25", "--share", "control=0.75", "--shadow", "next=law"),
        *("--rate", "next=0.5", "--salt", "pepper", "--tenant", "team-*"),
        *("--override", "tester=mixed", "--guardrail", "latency_s:p95 <= 1.5x"),
        *("--guardrail", "rating>=0.5", "--ramp", "10", "--new-version"),
    )
    assert result.exit_code == 0, result.output
    expected = pb.ExperimentDesign()
    expected.CopyFrom(DESIGN_MESSAGE)
    expected.guardrails[0].ClearField("alpha")
    assert answering.requests == [
        pb.CreateExperimentRequest(design=expected, ramp_percent=10.0, is_new_version=True)
    ]


def test_a_short_design(run: Run, answering: Script) -> None:
    arms = ("--arm", "control=@prod", "--arm", "b=math:0.6+code:0.4", "--arm", "c=base")
    assert run("create", "tone", *arms, "--arm", 'd={"terms":[]}').exit_code == 0
    (request,) = answering.requests
    assert request.design.arms[0] == pb.Arm(name="control", mix_name="prod", share=0.25)
    mix = common_pb2.Mix(expression="math:0.6+code:0.4")
    assert request.design.arms[1] == pb.Arm(name="b", mix=mix, share=0.25)
    assert request.design.arms[3].mix.expression == '{"terms":[]}'
    assert not request.HasField("ramp_percent")


@pytest.mark.parametrize(
    ("rule", "metric", "bound"),
    [
        ("right/right.count>=0.6", "right/right.count", 0.6),
        ("clicks / views >= 1e-3", "clicks/views", 1e-3),
        ("right>=0.6", "right", 0.6),
    ],
)
def test_rules_of_outcomes(
    run: Run, answering: Script, rule: str, metric: str, bound: float
) -> None:
    assert run("create", "tone", "--arm", "control=math", "--guardrail", rule).exit_code == 0
    (guardrail,) = answering.requests[0].design.guardrails
    assert (guardrail.metric, guardrail.bound) == (metric, bound)
    assert guardrail.limit == pb.GUARDRAIL_LIMIT_AT_LEAST


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--arm"),
        (["--arm", "math"], "--arm takes NAME=VALUE"),
        (["--arm", "a=x", "--arm", "a=y"], "--arm names 'a' twice"),
        (["--arm", "a=x", "--arm", "b=y", "--share", "a=1"], "--share must name every arm"),
        (["--arm", "a=x", "--share", "a=half"], "--share"),
        (["--arm", "a=x", "--rate", "a=0.5"], "--rate must name every arm"),
        (["--arm", "a=x", "--guardrail", "slow"], "--guardrail takes a rule"),
        (["--arm", "a=x", "--guardrail", "error_rate<=1e"], "--guardrail"),
        (["--arm", "a=x", "--guardrail", "clicks/>=1"], "--guardrail takes a rule"),
        (["--arm", "a=x", "--guardrail", "a/b/c>=1"], "--guardrail takes a rule"),
    ],
)
def test_usage_errors(run: Run, script: Script, flags: list[str], message: str) -> None:
    result = run("create", "tone", *flags)
    assert (result.exit_code, script.requests) == (2, [])
    assert message in result.stderr


def test_show_prints_json(run: Run, answering: Script) -> None:
    shown = json.loads(run("show", "tone", "--version", "2").stdout)
    assert answering.requests == [pb.GetExperimentRequest(name="tone", version=2)]
    assert shown["design"]["arms"][1]["share"] == 0.25
    assert shown["promotion"] == {"arm": "mixed", "mix_name": "prod", "before": None}
    assert shown["created_at"] == "2026-05-04T03:02:01+00:00"
    assert shown["stopped_at"] is None


def test_recording_one(run: Run, answering: Script) -> None:
    flags = ("--metric", "rating", "--value", "4", "--subject", "ann", "--key", "k")
    assert run("record", "tone", *flags).stdout == "recorded 2, known already 1\n"
    outcome = pb.Outcome(key="k", metric="rating", value=4.0, subject="ann")
    assert answering.requests == [pb.RecordOutcomesRequest(experiment="tone", outcomes=[outcome])]


def test_recording_a_file(run: Run, answering: Script, tmp_path: Path) -> None:
    path = tmp_path / "outcomes.jsonl"
    path.write_text(
        '{"metric": "rating", "value": 4, "subject": "ann", "key": "k"}\n'
        '{"metric": "rating", "value": 5, "request_id": "r", "key": "l", '
        '"at": "2026-05-04T03:02:01+00:00"}\n'
    )
    assert run("record", "tone", "--file", str(path)).exit_code == 0
    assert answering.requests[0].outcomes == [
        pb.Outcome(key="k", metric="rating", value=4.0, subject="ann"),
        pb.Outcome(key="l", metric="rating", value=5.0, request_id="r", at=STAMP),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1 is not JSON"),
        ("[]", "is not an outcome"),
        ('{"metric": "rating"}', "is not an outcome"),
        ('{"metric": "rating", "value": 1, "mood": 2}', "is not an outcome"),
        ('{"metric": "rating", "value": 1, "at": "noon"}', "is not an outcome"),
    ],
)
def test_a_file_of_something_else(
    run: Run, script: Script, tmp_path: Path, line: str, message: str
) -> None:
    path = tmp_path / "outcomes.jsonl"
    path.write_text(line)
    result = run("record", "tone", "--file", str(path))
    assert (result.exit_code, script.requests) == (2, [])
    assert message in result.stderr


def test_nothing_to_record(run: Run, script: Script) -> None:
    assert run("record", "tone").exit_code == 2
    assert run("record", "tone", "--value", "1").exit_code == 2
    assert script.requests == []


RESULTS = """\
tone@2 is promoted, ramp 50 %
arm mixed was stopped: too slow
its metrics, and the control's that they are compared with, end there

arm      share  subjects  requests  without subject
control  0.75   3         5         1
sample ratio: as planned (p = 0.5; chi-square, for a single look, 0.25)

metric  arm      subjects  value  difference  95 %            lift   p
rating  control  3         5      -           -               -      -
rating  mixed    2         5.5    +0.5        [+0.25, +0.75]  +10 %  0.01

shadow  requests  error rate  agreement  log-probability  tokens  served tokens
next    4         0.25        0.5        -                8       9.5
"""


def test_results_are_printed(run: Run, answering: Script) -> None:
    result = run("results", "tone", "--ratio", "a/b", "--ratio", "c/d", "--alpha", "0.1")
    assert (result.exit_code, result.stdout) == (0, RESULTS)
    assert answering.requests == [
        pb.GetResultsRequest(name="tone", ratios=["a/b", "c/d"], alpha=0.1)
    ]


def test_results_that_say_little(run: Run, script: Script) -> None:
    response = pb.GetResultsResponse()
    response.CopyFrom(RESPONSE)
    response.metrics[0].estimates[1].comparison.is_ready = False
    response.sample_ratio.is_mismatch = True
    script.answer("GetResults", lambda *_: response)
    printed = run("results", "tone").stdout
    assert "sample ratio: MISMATCH: " in printed
    assert "+0.5        too few subjects  -     -" in printed


def test_a_plot_is_written(run: Run, answering: Script, tmp_path: Path) -> None:
    path = tmp_path / "tone.png"
    result = run("results", "tone", "--plot", str(path))
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith(f"\nwrote {path}\n")
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    assert width > height > 100


def test_nothing_to_plot(script: Script, tmp_path: Path) -> None:
    script.answer("GetResults", lambda *_: pb.GetResultsResponse(experiment=MESSAGE))
    path = tmp_path / "tone.png"
    arguments = ["experiments", "results", "tone", "--plot", str(path)]
    result = CliRunner().invoke(main, arguments, env={"TASKMIX_SERVER": script.target})
    assert result.exit_code == 1
    assert "nothing to draw" in result.stderr
    assert not path.exists()
