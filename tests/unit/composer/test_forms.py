from dataclasses import replace
from pathlib import Path

import pytest
import torch

from taskmix_composer.build import add_task, build_bank, recode_bank
from taskmix_composer.config import Scheme
from taskmix_composer.errors import InvalidPlanError, InvalidSchemeError, UnknownTaskError
from taskmix_composer.forms import Coding, Forms
from taskmix_composer.plan import Plan
from taskmix_composer.quant import decode
from tests.unit.composer.models import DOWN, EMBEDDING, NORM, QUERY, make_weights, tuned

PLAN = Plan(
    {
        "math": {QUERY: Scheme("int8"), DOWN: None, NORM: Scheme("dense")},
        "code": {QUERY: Scheme("int2"), EMBEDDING: Scheme.of("sparse", density=0.2)},
    },
    budget_bytes=4000,
    predicted_bytes=3500,
    predicted_error=0.25,
)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """PLAN as a file."""
    PLAN.write(tmp_path / "PLAN.json")
    return tmp_path / "PLAN.json"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int4", Forms(Scheme("int4"))),
        (" int2(group=16) ", Forms(Scheme.of("int2", group=16))),
        ("exact", Forms(Scheme("exact"))),
        ("exact,int4", Forms(Scheme("int4"), is_archived=True)),
        ("exact , tall(mtl=2,group=16)", Forms(Scheme.of("tall", mtl=2, group=16), None, True)),
        ("rtvq(base=3,offset=2)", Forms(Scheme.of("rtvq", base=3, offset=2))),
    ],
)
def test_forms_are_read(text: str, expected: Forms) -> None:
    assert Forms.parse(text) == expected


def test_a_group_is_of_the_scheme_that_is_served() -> None:
    assert Forms.parse("exact,int4", group=8).scheme == Scheme.of("int4", group=8)
    with pytest.raises(InvalidSchemeError, match="exact takes no group"):
        Forms.parse("exact", group=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read scheme ''"),
        ("exact,", "cannot read scheme ''"),
        ("exact,exact", "stores everything twice"),
        ("int4,exact", "cannot read scheme 'int4,exact'"),
        ("exact,int4,int2", "cannot read scheme 'int4,int2'"),
        ("exact(group=4)", "no option 'group'"),
        ("exact,q9", "'q9' is not available"),
    ],
)
def test_forms_that_mean_nothing_are_refused(text: str, message: str) -> None:
    with pytest.raises(InvalidSchemeError, match=message):
        Forms.parse(text)


def test_a_plan_is_read_in_place_of_a_scheme(plan: Path) -> None:
    assert Forms.parse(f"@{plan}") == Forms(plan=PLAN)
    assert Forms.parse(f"exact,@{plan}") == Forms(plan=PLAN, is_archived=True)
    with pytest.raises(InvalidPlanError, match=r"no\.json cannot be read"):
        Forms.parse(f"@{plan.with_name('no.json')}")
    with pytest.raises(InvalidSchemeError, match="leave the group out"):
        Forms.parse(f"@{plan}", group=16)


def test_codings() -> None:
    scheme = Scheme.of("int8", group=4)
    assert Forms(scheme).coding("any") == Coding("int8(group=4)", scheme)
    assert Forms(scheme).coding("any").of(QUERY) == scheme
    coding = Forms(plan=PLAN).coding("math")
    assert coding.name == "planned"
    assert coding.of(QUERY) == Scheme("int8")
    assert coding.of(DOWN) is None
    assert coding.of(EMBEDDING) == Scheme("dense")
    with pytest.raises(UnknownTaskError, match="the plan has no task 'law'; it is for code, math"):
        Forms(plan=PLAN).coding("law")


def test_a_plan_is_not_bound_to_a_set() -> None:
    tall = Scheme("tall")
    assert Forms(tall).is_set_bound
    assert not Forms(tall, plan=PLAN).is_set_bound
    assert not Forms(Scheme("int4")).is_set_bound


def test_settings_hold_options_and_thresholds() -> None:
    forms = Forms(Scheme.of("tall", mtl=2), thresholds={"math": 0.2, "code": 0.6})
    assert forms.settings() == {
        "mtl": 2,
        "group": 64,
        "lambda": 0.4,
        "lambda.code": 0.6,
        "lambda.math": 0.2,
    }


@pytest.mark.parametrize("value", [0.0, -1.0, 2e3, float("nan"), float("inf")])
def test_thresholds_are_checked(value: float) -> None:
    with pytest.raises(InvalidSchemeError, match=r"lambda\.math must be in"):
        Forms(Scheme("tall"), thresholds={"math": value})


def test_thresholds_are_for_tall_and_for_tasks_that_are_built(
    tmp_path: Path, base: Path, math: Path
) -> None:
    for forms in (Forms(Scheme("emr")), Forms(Scheme("tall"), plan=PLAN)):
        with pytest.raises(InvalidSchemeError, match="only tall takes a lambda"):
            replace(forms, thresholds={"math": 0.2})
    forms = Forms(Scheme("tall"), thresholds={"moth": 0.2})
    with pytest.raises(InvalidSchemeError, match="'moth' has a lambda but is not among the tasks"):
        build_bank(base, {"math": math}, forms, tmp_path / "built")
    assert not (tmp_path / "built").exists()


def test_a_planned_build_codes_each_tensor_as_planned(
    tmp_path: Path, base: Path, math: Path, code: Path, adapter: Path, plan: Path
) -> None:
    sources = {"math": math, "code": code, "lora": adapter}
    forms = Forms.parse(f"exact,@{plan}")
    bank = build_bank(base, sources, forms, tmp_path / "planned")
    assert bank.entry("math").scheme == bank.entry("code").scheme == "planned"
    assert bank.entry("lora").scheme == "lowrank"
    assert set(bank.entry("math").tensors) == {EMBEDDING, QUERY, NORM}
    assert bank.read("math", QUERY).params["bits"] == 8
    assert bank.read("code", QUERY).params["bits"] == 2
    assert bank.read("code", EMBEDDING).codec == "sparse"
    model, weights = tuned(make_weights(), seed=1), make_weights()
    original = model[EMBEDDING].float() - weights[EMBEDDING].float()
    assert torch.equal(decode(bank.read("math", EMBEDDING)), original)
    added = add_task(bank.path, base, "law", math)
    assert added.entry("law").scheme == "int4(group=64)"
    both = recode_bank(bank.path, base, Forms.parse("int4"), ("math", "code"))
    again = recode_bank(bank.path, base, Forms.parse(f"@{plan}"), ("math", "code"))
    assert both.entry("math").scheme == "int4(group=64)"
    assert again.entry("math") == bank.entry("math")
    assert again.entry("code") == bank.entry("code")
