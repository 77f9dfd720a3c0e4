"""Merging into a bank: what is published gives the method's output and says where it is from."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.bank.records import Derivation
from taskmix_composer.build import add_task, build_bank, recode_bank, remove_task
from taskmix_composer.compose import merged_tensor
from taskmix_composer.config import Scheme
from taskmix_composer.errors import (
    BaseMismatchError,
    InvalidMethodError,
    InvalidMixError,
    InvalidSchemeError,
    TaskExistsError,
    UnarchivedError,
    UnknownTaskError,
)
from taskmix_composer.forms import Forms
from taskmix_composer.merge import MERGE_METHODS, parse_params
from taskmix_composer.mix import Mix
from taskmix_composer.publish import MergeRequest, merge_tasks
from taskmix_composer.quant import decode
from tests.support.vectors import HeldVectors
from tests.unit.composer.models import (
    DOWN,
    EMBEDDING,
    QUERY,
    make_factors,
    make_weights,
    save_model,
    tuned,
)

WEIGHTS = make_weights()
MODELS = {task: tuned(WEIGHTS, seed) for seed, task in enumerate(("math", "code", "law"), start=1)}
TASKS = tuple(MODELS)
NUM_WEIGHTS = sum(tensor.numel() for tensor in WEIGHTS.values())
ENTRIES = {
    "ties": ["density=0.3", "lambda=0.7"],
    "ties-mergekit": ["density=0.4", "weight=0.5,-1,2"],
    "dare": ["density=0.4", "lambda=0.3", "seed=3"],
    "dare-mergekit": ["density=0.4", "weight=0.5,-1,2"],
    "consensus-ta": ["lambda=0.3"],
    "consensus-ties": ["lambda=0.3", "density=0.5"],
    "breadcrumbs": ["density=0.5", "gamma=0.2"],
    "magmax": ["lambda=1.5"],
    "emr": [],
    "tsv-m": [],
    "iso-c": ["scaling_factor=0.5"],
}
PLANES = {
    **{method: ENTRIES[method] for method in ENTRIES if method not in ("tsv-m", "iso-c")},
    "ties": ["density=0.3", "merge_func=sum", "lambda=0.7"],
    "ties-mergekit": ["normalize=false", "density=0.4", "weight=0.5,-1,2"],
}


def request(method: str, pairs: list[str], name: str = "out", **options: object) -> MergeRequest:
    tasks = options.pop("tasks", TASKS)
    return MergeRequest(method, tasks, parse_params(method, pairs), name, **options)


class NamedVectors(HeldVectors):
    """Vectors of the tasks in MODELS: random methods draw by a task's name."""

    @property
    def tasks(self) -> tuple[str, ...]:
        return TASKS[: len(super().tasks)]


def held(num_tasks: int = len(TASKS)) -> HeldVectors:
    """The task vectors of the first tasks, without a bank."""
    models = [MODELS[task] for task in TASKS[:num_tasks]]
    return NamedVectors(
        {
            name: torch.stack([model[name].float() - before.float() for model in models])
            for name, before in WEIGHTS.items()
        }
    )


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Equal but for 1e-6 of the whole tensor's norm."""
    difference = (found.double() - expected.double()).norm()
    assert float(difference) <= 1e-6 * float(expected.double().norm())


def added(bank: Bank, mix: Mix, name: str) -> Tensor:
    """What a mix adds to one tensor."""
    return merged_tensor(torch.zeros(WEIGHTS[name].shape), bank, mix, name)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank of three tasks, served dense, archived."""
    root = tmp_path_factory.mktemp("original")
    base = save_model(root / "base", WEIGHTS)
    sources = {task: save_model(root / f"{task}-m", model) for task, model in MODELS.items()}
    return build_bank(base, sources, Forms.parse("exact,dense"), root / "three").path


@pytest.fixture
def three(tmp_path: Path, original: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "three"))


def test_every_method_is_published_here() -> None:
    assert sorted(ENTRIES) == sorted(MERGE_METHODS)
    with_planes = [name for name, method in MERGE_METHODS.items() if method.planes_if is not None]
    assert sorted(PLANES) == sorted(with_planes)


@pytest.mark.parametrize("method", ENTRIES)
def test_an_entry_adds_what_the_method_gives(three: Path, base: Path, method: str) -> None:
    bank, mix = merge_tasks(three, base, request(method, ENTRIES[method]))
    expected = dict(MERGE_METHODS[method].merge(held(), parse_params(method, ENTRIES[method])))
    assert mix == Mix.of({"out": 1.0})
    assert bank.entry("out").scheme == "dense"
    for name in WEIGHTS:
        assert_near(added(bank, mix, name), expected[name])


@pytest.mark.parametrize("method", PLANES)
def test_planes_add_what_the_method_gives(three: Path, base: Path, method: str) -> None:
    bank, mix = merge_tasks(three, base, request(method, PLANES[method], is_planes=True))
    bank.check_mix(mix)
    expected = dict(MERGE_METHODS[method].merge(held(), parse_params(method, PLANES[method])))
    assert set(bank.planes) == {f"out.{task}" for task in TASKS}
    assert {(term.task, term.masks) for term in mix.terms} == {
        (task, (f"out.{task}",)) for task in TASKS
    }
    for name in WEIGHTS:
        assert_near(added(bank, mix, name), expected[name])


def test_magmax_by_its_formula(three: Path, base: Path) -> None:
    bank, mix = merge_tasks(three, base, request("magmax", ["lambda=0.5"], is_planes=True))
    num_ones = dict.fromkeys(TASKS, 0)
    for name in WEIGHTS:
        stacked = torch.stack([model[name].double() for model in MODELS.values()])
        deltas = stacked - WEIGHTS[name].double()
        # Of equal magnitudes the last task's.
        winners = len(TASKS) - 1 - deltas.abs().flip(0).argmax(dim=0)
        expected = 0.5 * deltas.gather(0, winners.unsqueeze(0))[0]
        assert_near(added(bank, mix, name), expected)
        for index, task in enumerate(TASKS):
            num_ones[task] += int((winners == index).sum())
    for task in TASKS:
        assert bank.planes[f"out.{task}"].density == num_ones[task] / NUM_WEIGHTS


def test_provenance_says_how_and_of_what(three: Path, base: Path) -> None:
    pairs = ["density=0.4,0.5", "weight=1,2", "normalize=false"]
    merged = request("ties-mergekit", pairs, tasks=("math", "law"), scheme=Scheme("int8"))
    bank, _ = merge_tasks(three, base, merged)
    derivation = bank.entry("out").provenance
    assert isinstance(derivation, Derivation)
    assert derivation.method == "ties-mergekit"
    assert derivation.params == {
        "density": "0.4,0.5",
        "weight": "1.0,2.0",
        "normalize": "false",
        "lambda": 1.0,
    }
    assert derivation.bound == {
        task: bank.entry(task).provenance.digest for task in ("math", "law")
    }
    assert not derivation.is_from_bank
    assert bank.entry("out").scheme == "int8(group=64)"
    planes, _ = merge_tasks(three, base, replace(merged, is_planes=True, name="p"))
    assert planes.planes["p.law"].derivation == derivation
    assert Bank.open(three).revision == planes.revision


def test_originals_are_read_and_not_what_is_served(tmp_path: Path, three: Path, base: Path) -> None:
    recode_bank(three, base, Forms.parse("int2"))
    merged = request("magmax", ["lambda=1"], scheme=Scheme("dense"))
    bank, mix = merge_tasks(three, base, merged)
    expected = dict(MERGE_METHODS["magmax"].merge(held(), parse_params("magmax", ["lambda=1"])))
    assert_near(added(bank, mix, DOWN), expected[DOWN])
    assert (
        merge_tasks(three, base, replace(merged, name="b", scheme=None))[0].entry("b").scheme
        == "int2(group=64)"
    )


def test_a_set_bound_bank_gets_its_entries_as_int4(three: Path, base: Path) -> None:
    recode_bank(three, base, Forms.parse("tall"))
    bank, _ = merge_tasks(three, base, request("magmax", []))
    assert bank.entry("out").scheme == "int4(group=64)"


def test_without_originals_a_merge_is_refused_unless_told_where_they_are(
    tmp_path: Path, bank: Path, base: Path, math: Path, code: Path
) -> None:
    pair = request("magmax", ["lambda=1"], tasks=("math", "code"))
    revision = Bank.open(bank).revision
    with pytest.raises(UnarchivedError) as caught:
        merge_tasks(bank, base, pair)
    for words in ("'math'", "dense only", "--from math=DIR", "--from-bank"):
        assert words in str(caught.value)
    with pytest.raises(UnarchivedError, match="'code'"):
        merge_tasks(bank, base, replace(pair, directories={"math": math}))
    assert Bank.open(bank).revision == revision
    given = replace(pair, directories={"math": math, "code": code})
    opened, mix = merge_tasks(bank, base, given)
    assert not opened.entry("out").provenance.is_from_bank
    expected = dict(MERGE_METHODS["magmax"].merge(held(2), parse_params("magmax", ["lambda=1"])))
    assert_near(added(opened, mix, QUERY), expected[QUERY])


def test_from_bank_merges_what_is_served_and_says_so(
    tmp_path: Path, base: Path, math: Path, code: Path
) -> None:
    sources = {"math": math, "code": code}
    path = build_bank(base, sources, Forms.parse("int2"), tmp_path / "low").path
    options = {"tasks": ("math", "code"), "is_from_bank": True, "scheme": Scheme("dense")}
    bank, mix = merge_tasks(path, base, request("magmax", ["lambda=1"], **options))
    assert bank.entry("out").provenance.is_from_bank
    served = torch.stack([decode(bank.read(task, DOWN)) for task in ("math", "code")])
    winners = served.abs()[1] >= served.abs()[0]
    expected = torch.where(winners, served[1], served[0])
    assert_near(added(bank, mix, DOWN), expected)
    # What is archived or given is still preferred.
    given = request("magmax", ["lambda=1"], "given", **options, directories=sources)
    assert not merge_tasks(path, base, given)[0].entry("given").provenance.is_from_bank


def test_a_directory_must_hold_the_fine_tune_that_the_bank_has(
    bank: Path, base: Path, math: Path, code: Path
) -> None:
    pair = request("magmax", [], tasks=("math", "code"), is_from_bank=True)
    with pytest.raises(BaseMismatchError, match="another fine-tune than the bank's 'math'"):
        merge_tasks(bank, base, replace(pair, directories={"math": code}))
    strange = replace(pair, tasks=("math", "new"), directories={"new": code})
    opened, _ = merge_tasks(bank, base, strange)
    assert set(opened.entry("out").provenance.bound) == {"math", "new"}
    with pytest.raises(UnknownTaskError, match="'new'"):
        merge_tasks(bank, base, replace(strange, name="p", is_planes=True))
    with pytest.raises(UnknownTaskError, match="'law'"):
        merge_tasks(bank, base, replace(pair, tasks=("math", "law"), name="q"))


def test_names_that_are_taken(three: Path, base: Path) -> None:
    with pytest.raises(TaskExistsError, match="has 'math' already"):
        merge_tasks(three, base, request("magmax", [], "math"))
    planes = request("magmax", [], "v.1", is_planes=True)
    first, _ = merge_tasks(three, base, planes)
    for tasks in (TASKS, ("math", "code")):
        with pytest.raises(TaskExistsError, match=r"has 'v\.1\.code' already"):
            merge_tasks(three, base, replace(planes, tasks=tasks))
    assert Bank.open(three).planes == first.planes
    both, _ = merge_tasks(three, base, replace(planes, name="v2"))
    assert len(both.planes) == 6
    entry, _ = merge_tasks(three, base, replace(planes, is_planes=False))
    assert "v.1" in entry.entries
    remove_task(three, "v.1")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"name": "base"}, InvalidMixError, "reserved"),
        ({"name": "No"}, InvalidMixError, "not a task name"),
        ({"tasks": ()}, InvalidMethodError, "name the tasks to merge"),
        ({"tasks": ("math", "math")}, InvalidMethodError, "each once"),
        ({"directories": {"law": Path()}}, InvalidMethodError, "'law' has a directory"),
        ({"scheme": Scheme("tall")}, InvalidSchemeError, "cannot be tall"),
        ({"scheme": Scheme("exact")}, InvalidSchemeError, "cannot be exact"),
    ],
)
def test_requests_are_checked(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    plain = request("magmax", [], tasks=("math", "code"))
    with pytest.raises(error, match=message):
        replace(plain, **change)


def test_a_method_that_is_no_sum_of_masked_tasks_has_no_planes(three: Path, base: Path) -> None:
    for method, pairs in {"tsv-m": [], "ties": []}.items():
        with pytest.raises(InvalidMethodError, match=f"{method} is no sum"):
            merge_tasks(three, base, request(method, pairs, is_planes=True))
    assert Bank.open(three).planes == {}


def test_tasks_that_add_nothing_have_no_planes(three: Path, base: Path, tmp_path: Path) -> None:
    unweighted = request("breadcrumbs", ["weight=1,0,1"], is_planes=True)
    with pytest.raises(InvalidMethodError, match="'code' adds nothing"):
        merge_tasks(three, base, unweighted)
    same = save_model(tmp_path / "same", WEIGHTS)
    add_task(three, base, "same", same)
    idle = request("magmax", [], tasks=("same",))
    with pytest.raises(InvalidMethodError, match="'same' adds nothing"):
        merge_tasks(three, base, replace(idle, is_planes=True))
    bank, mix = merge_tasks(three, base, idle)
    assert bank.entry("out").tensors == {}
    bank.check_mix(mix)


def test_tensors_that_one_task_alone_changed_and_adapters(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    narrow = {**WEIGHTS, DOWN: MODELS["law"][DOWN]}
    sources = {"narrow": save_model(tmp_path / "narrow", narrow), "lora": adapter}
    path = build_bank(base, sources, Forms.parse("exact,dense"), tmp_path / "bank").path
    merged = request("magmax", ["lambda=1"], tasks=("narrow", "lora"))
    for number, is_planes in enumerate((True, False)):
        bank, mix = merge_tasks(path, base, replace(merged, name=f"m{number}", is_planes=is_planes))
        a, b = make_factors().values()
        torch.testing.assert_close(added(bank, mix, QUERY), 2.0 * b @ a)
        assert_near(added(bank, mix, DOWN), narrow[DOWN].float() - WEIGHTS[DOWN].float())
        assert not added(bank, mix, EMBEDDING).any()


def test_a_published_entry_is_a_task_like_any_other(three: Path, base: Path) -> None:
    bank, _ = merge_tasks(three, base, request("magmax", ["lambda=1"]))
    mix = Mix.parse("out:0.5+math:-1")
    expected = dict(MERGE_METHODS["magmax"].merge(held(), parse_params("magmax", ["lambda=1"])))
    own = MODELS["math"][QUERY].float() - WEIGHTS[QUERY].float()
    assert_near(added(bank, mix, QUERY), 0.5 * expected[QUERY] - own)
    again, _ = merge_tasks(three, base, request("magmax", ["lambda=1"], "twin"))
    assert again.entry("twin").digest == bank.entry("out").digest
    assert "out" not in remove_task(three, "out").entries


def test_progress_is_reported(three: Path, base: Path) -> None:
    calls: list[tuple[int, int]] = []
    merge_tasks(three, base, request("magmax", []), lambda *call: calls.append(call))
    assert calls
    assert all(0 < done <= total for done, total in calls)


def test_a_plane_is_removed_by_its_name(three: Path, base: Path) -> None:
    before = Bank.open(three)
    bank, _ = merge_tasks(three, base, request("magmax", [], is_planes=True))
    assert sorted(bank.planes) == [f"out.{task}" for task in sorted(TASKS)]
    for plane in sorted(bank.planes):
        bank = remove_task(three, plane)
    assert bank.revision == before.revision
    assert not list((three / "shards").glob("out.*"))
    with pytest.raises(UnknownTaskError, match=r"no task 'out\.math'"):
        remove_task(three, "out.math")
