from collections.abc import Mapping
from pathlib import Path

import pytest

from taskmix_composer.bank import Bank
from taskmix_composer.build import build_bank, open_source
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.errors import InvalidPlanError
from taskmix_composer.forms import Forms
from taskmix_composer.plan import Plan
from taskmix_composer.planning import Effects, Forecast, make_plan
from tests.unit.composer.models import DOWN, EMBEDDING, NORM, QUERY

AMPLE = 1 << 20


def planned(
    base: Path, tasks: Mapping[str, Path], budget_bytes: int, effects: Effects | None = None
) -> tuple[Plan, dict[str, Forecast]]:
    checkpoint = Checkpoint.open(base)
    sources = {task: open_source(checkpoint, path) for task, path in tasks.items()}
    return make_plan(checkpoint, sources, budget_bytes, effects)


def shard_bytes(path: Path) -> dict[str, int]:
    return {task: entry.num_bytes for task, entry in Bank.open(path).entries.items()}


def smallest_budget(base: Path, tasks: Mapping[str, Path]) -> int:
    """The budget that the refusal of no budget at all names."""
    with pytest.raises(InvalidPlanError) as refused:
        planned(base, tasks, 0)
    return int(str(refused.value).partition(" are needed")[0].split()[-1])


def test_what_is_built_has_the_forecast_bytes(
    tmp_path: Path, base: Path, math: Path, code: Path, adapter: Path
) -> None:
    tasks = {"math": math, "code": code, "lora": adapter}
    least = smallest_budget(base, tasks)
    for budget in (least, least + 700, least + 3000, AMPLE):
        plan, forecasts = planned(base, tasks, budget)
        out = tmp_path / str(budget)
        build_bank(base, tasks, Forms(plan=plan), out)
        built = shard_bytes(out)
        assert plan.predicted_bytes <= budget
        assert plan.predicted_bytes == sum(forecast.num_bytes for forecast in forecasts.values())
        for task, forecast in forecasts.items():
            # Besides padding, only the digits of offsets in the header are not known beforehand.
            assert 0 <= forecast.num_bytes - built[task] <= 64 + 4 * 4 * 2 * 12


def test_a_budget_below_the_smallest_is_refused(base: Path, math: Path) -> None:
    least = smallest_budget(base, {"math": math})
    with pytest.raises(InvalidPlanError, match=f"{least} are needed"):
        planned(base, {"math": math}, least - 1)
    plan, forecasts = planned(base, {"math": math}, least)
    assert [name for name, scheme in plan.of("math").items() if scheme is not None] == [NORM]
    assert plan.predicted_error == pytest.approx(1.0)
    assert forecasts["math"].error == pytest.approx(1.0)


def test_a_larger_budget_loses_less(base: Path, math: Path, code: Path) -> None:
    tasks = {"math": math, "code": code}
    least = smallest_budget(base, tasks)
    errors = [
        planned(base, tasks, budget)[0].predicted_error
        for budget in (least, least + 500, least + 1500, AMPLE)
    ]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)
    assert errors[-1] < 0.01


def test_room_goes_to_tensors_with_larger_deltas(base: Path, math: Path) -> None:
    least = smallest_budget(base, {"math": math})
    plan, _ = planned(base, {"math": math}, least + 400)
    kept = {name for name, scheme in plan.of("math").items() if scheme is not None}
    assert NORM in kept
    assert kept != {NORM, QUERY, DOWN, EMBEDDING}


@pytest.mark.parametrize("favourite", [QUERY, DOWN, EMBEDDING])
def test_room_goes_to_tensors_with_measured_effects(base: Path, math: Path, favourite: str) -> None:
    others = dict.fromkeys((QUERY, DOWN, EMBEDDING), 1e-6)
    least = smallest_budget(base, {"math": math})
    effects = {"math": {**others, favourite: 1.0}}
    plan, forecasts = planned(base, {"math": math}, least + 700, effects)
    kept = {name for name, scheme in plan.of("math").items() if scheme is not None}
    assert favourite in kept
    assert forecasts["math"].error < 0.5


def test_tasks_count_the_same(base: Path, math: Path, code: Path) -> None:
    plan, forecasts = planned(base, {"math": math, "code": code}, AMPLE)
    mean = sum(forecast.error for forecast in forecasts.values()) / 2
    assert plan.predicted_error == pytest.approx(mean)


def test_an_adapter_needs_no_schemes(base: Path, adapter: Path) -> None:
    plan, forecasts = planned(base, {"lora": adapter}, AMPLE)
    assert plan.of("lora") == {}
    assert forecasts["lora"].error == 0.0
    assert plan.predicted_bytes == forecasts["lora"].num_bytes > 0
