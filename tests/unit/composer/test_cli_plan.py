from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from taskmix_composer.bank import Bank
from taskmix_composer.build import build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.errors import InvalidSchemeError
from taskmix_composer.forms import Forms
from taskmix_composer.plan import Plan
from taskmix_server.cli import main
from taskmix_server.cli.planning import planned_forms

BUDGET = 4000


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_a_plan_is_made_and_built(tmp_path: Path, base: Path, math: Path, code: Path) -> None:
    path, out = tmp_path / "plan.json", tmp_path / "bank"
    tasks = ("--base", base, "--task", f"math={math}", "--task", f"code={code}")
    made = run("bank", "plan", *tasks, "--budget", BUDGET, "--out", path)
    assert made.exit_code == 0, made.output
    plan = Plan.read(path)
    lines = [line.split() for line in made.stdout.splitlines()]
    assert lines[0] == ["task", "predicted", "bytes", "predicted", "error"]
    assert lines[1][0] == "code"
    assert lines[2][0] == "math"
    assert lines[3][:2] == ["total", str(plan.predicted_bytes)]
    assert int(lines[1][1]) + int(lines[2][1]) == plan.predicted_bytes <= BUDGET
    assert lines[3][2] == f"{plan.predicted_error:.3%}"
    assert "scheme" in lines[5]
    num_tensors = sum(len(schemes) for schemes in plan.schemes.values())
    assert sum(int(line[-2]) for line in lines[6:]) == num_tensors == 8

    built = run("bank", "build", *tasks, "--scheme", f"@{path}", "--out", out)
    assert built.exit_code == 0, built.output
    entries = Bank.open(out).entries
    assert {entry.scheme for entry in entries.values()} == {"planned"}
    assert sum(entry.num_bytes for entry in entries.values()) <= plan.predicted_bytes


def test_an_archive_is_planned_without_the_original(tmp_path: Path, base: Path, math: Path) -> None:
    bank = tmp_path / "archive"
    build_bank(base, {"math": math}, Forms(Scheme("exact")), bank)
    paths = tmp_path / "one.json", tmp_path / "two.json"
    sources = ("--bank", bank), ("--task", f"math={math}")
    for path, source in zip(paths, sources, strict=True):
        made = run("bank", "plan", "--base", base, *source, "--budget", BUDGET, "--out", path)
        assert made.exit_code == 0, made.output
    assert Plan.read(paths[0]) == Plan.read(paths[1])


def test_a_plan_is_made_on_the_way(base: Path, math: Path) -> None:
    forms = planned_forms(f"planned(budget={BUDGET})", base, {"math": math})
    assert forms.plan is not None
    assert forms.plan.budget_bytes == BUDGET
    assert not forms.is_archived
    assert planned_forms(f"exact,planned(budget={BUDGET})", base, {"math": math}).is_archived
    assert planned_forms("int4", base, {"math": math}, group=32) == Forms(
        Scheme.parse("int4", group=32)
    )


def test_what_cannot_be_planned_is_refused(tmp_path: Path, base: Path, math: Path) -> None:
    out = tmp_path / "plan.json"
    task = ("--task", f"math={math}")
    small = run("bank", "plan", "--base", base, *task, "--budget", 10, "--out", out)
    assert small.exit_code == 1
    assert "a budget of 10 bytes is too small" in small.stderr
    none = run("bank", "plan", "--base", base, "--budget", 10, "--out", out)
    assert none.exit_code == 2
    assert "--task or --bank" in none.stderr
    negative = run("bank", "plan", "--base", base, *task, "--budget", -1, "--out", out)
    assert negative.exit_code == 2
    empty = tmp_path / "prompts.txt"
    empty.write_text("\n  \n")
    prompts = ("--prompts", empty)
    no_prompts = run(
        "bank", "plan", "--base", base, *task, *prompts, "--budget", BUDGET, "--out", out
    )
    assert no_prompts.exit_code == 1
    assert "has no prompts" in no_prompts.stderr
    assert not out.exists()


@pytest.mark.parametrize("text", ["planned", "planned(budget=)", "planned(budget=-1)"])
def test_a_plan_needs_a_budget(text: str, base: Path, math: Path) -> None:
    with pytest.raises(InvalidSchemeError, match=r"write planned\(budget=BYTES\)"):
        planned_forms(text, base, {"math": math})
