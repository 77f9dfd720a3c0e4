import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmix_composer.config import OPTIONS, SET_BOUND, Scheme
from taskmix_composer.errors import InvalidPlanError, UnknownTaskError
from taskmix_composer.forms import Forms
from taskmix_composer.plan import Plan

PLAN = Plan(
    {"math": {"a.weight": Scheme("int4"), "b.weight": None, "norm.weight": Scheme("dense16")}},
    budget_bytes=1000,
    predicted_bytes=990,
    predicted_error=0.125,
)
names = st.text(st.characters(codec="utf-8"), max_size=8)
schemes = st.sampled_from([None, *(Scheme(name) for name in OPTIONS if name not in SET_BOUND)])


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("plans")


@given(
    by_task=st.dictionaries(names, st.dictionaries(names, schemes, max_size=3), max_size=3),
    num_bytes=st.tuples(st.integers(0, 1 << 50), st.integers(0, 1 << 50)),
    error=st.floats(0, 1),
)
def test_a_plan_is_read_as_it_was_written(
    directory: Path,
    by_task: dict[str, dict[str, Scheme | None]],
    num_bytes: tuple[int, int],
    error: float,
) -> None:
    plan = Plan(by_task, *num_bytes, error)
    plan.write(directory / "plan.json")
    assert Plan.read(directory / "plan.json") == plan


def test_a_plan_is_written_alike_whatever_its_order(tmp_path: Path) -> None:
    PLAN.write(tmp_path / "one.json")
    turned = {"math": dict(reversed(PLAN.schemes["math"].items()))}
    Plan(turned, 1000, 990, 0.125).write(tmp_path / "two.json")
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    fields = json.loads((tmp_path / "one.json").read_text())
    assert (fields["format"], fields["version"]) == ("taskmix-plan", 1)
    assert fields["tasks"]["math"]["b.weight"] is None
    assert fields["tasks"]["math"]["a.weight"] == "int4(group=64)"


def test_forms_follow_a_plan(tmp_path: Path) -> None:
    PLAN.write(tmp_path / "plan.json")
    forms = Forms.parse(f"exact, @{tmp_path / 'plan.json'}")
    assert forms.is_archived
    assert not forms.is_set_bound
    coding = forms.coding("math")
    assert coding.name == "planned"
    assert coding.of("a.weight") == Scheme("int4")
    assert coding.of("b.weight") is None
    assert coding.of("unplanned.weight") == Scheme("dense")
    with pytest.raises(UnknownTaskError, match="no task 'law'; it is for math"):
        forms.coding("law")


def fields(**changes: Any) -> dict[str, Any]:
    good = {
        "format": "taskmix-plan",
        "version": 1,
        "budget_bytes": 1,
        "predicted_bytes": 1,
        "predicted_error": 0.5,
        "tasks": {"math": {"a": "int4"}},
    }
    return {**good, **changes}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not a plan"),
        ("[]", "not a plan"),
        (json.dumps({"format": "taskmix-plan"}), "version"),
        (json.dumps(fields(format="other")), "format 'other'"),
        (json.dumps(fields(version=2)), "version 2"),
        (json.dumps(fields(tasks=[])), "not a plan"),
        (json.dumps(fields(tasks={"math": 3})), "not a plan"),
        (json.dumps(fields(tasks={"math": {"a": "int5"}})), "int5"),
        (json.dumps(fields(tasks={"math": {"a": 4}})), "not a plan"),
        (json.dumps(fields(tasks={"math": {"a": "tall(mtl=4)"}})), "not for single tensors"),
        (json.dumps(fields(budget_bytes="many")), "many"),
    ],
)
def test_what_is_no_plan_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(InvalidPlanError, match=reason) as refused:
        Plan.read(path)
    assert str(path) in str(refused.value)
    with pytest.raises(InvalidPlanError):
        Forms.parse(f"@{path}")


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidPlanError, match="cannot be read"):
        Plan.read(tmp_path / "missing.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidPlanError, match="cannot be read"):
        Plan.read(tmp_path / "binary")
