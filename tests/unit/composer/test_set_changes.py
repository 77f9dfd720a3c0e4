"""Adding to and removing from a set that shares a vector: what is coded anew, and what is not."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.build import add_task, build_bank, recode_bank, remove_task
from taskmix_composer.errors import (
    BaseMismatchError,
    InvalidSchemeError,
    TaskExistsError,
    UnarchivedError,
)
from taskmix_composer.forms import Forms
from taskmix_composer.quant import decode
from tests.unit.composer.models import (
    DOWN,
    EMBEDDING,
    NORM,
    QUERY,
    make_factors,
    make_weights,
    save_model,
    tuned,
)

WEIGHTS = make_weights()
LAW = tuned(WEIGHTS, seed=3)
SET_BOUND = ("rtvq(base=3,offset=2)", "tall(mtl=4)", "emr(mtl=4)")
ROUNDING = 1 + 1e-4


@pytest.fixture
def law(tmp_path: Path) -> Path:
    """A third fine-tune of the base."""
    return save_model(tmp_path / "law-model", LAW)


def frozen(scheme: str) -> Forms:
    return replace(Forms.parse(scheme), is_frozen=True)


def written(bank: Path) -> dict[str, int]:
    """When each shard was written, without the table of inner products."""
    return {
        file.name: file.stat().st_mtime_ns
        for file in (bank / "shards").iterdir()
        if not file.name.startswith("gram-")
    }


def delta(model: dict[str, Tensor], name: str) -> Tensor:
    return model[name].float() - WEIGHTS[name].float()


def shared_values(bank: Bank, task: str, name: str) -> Tensor:
    encoded = bank.read_shared(bank.entry(task).shared, name)
    assert encoded is not None
    return decode(encoded)


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_a_task_that_joins_gives_what_building_all_at_once_gives(
    tmp_path: Path, base: Path, math: Path, code: Path, law: Path, scheme: str
) -> None:
    forms = Forms.parse(f"exact,{scheme}")
    path = build_bank(base, {"math": math, "code": code}, forms, tmp_path / "grown").path
    add_task(path, base, "other", law, Forms.parse("int4"))
    other = next(file for file in written(path) if file.startswith("other-"))
    before = written(path)
    grown = add_task(path, base, "law", law, forms)
    assert written(path)[other] == before[other]
    whole = build_bank(base, {"law": law, "code": code, "math": math}, forms, tmp_path / "whole")
    assert grown.manifest.shared == whole.manifest.shared
    for task in ("math", "code", "law"):
        assert grown.entry(task) == whole.entry(task)
    shared = [name for name in written(path) if name.startswith("_shared-")]
    assert len(shared) == 1
    assert shared[0] not in before


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_a_set_without_archives_cannot_be_joined(
    tmp_path: Path, base: Path, math: Path, code: Path, law: Path, scheme: str
) -> None:
    forms = Forms.parse(scheme)
    path = build_bank(base, {"math": math, "code": code}, forms, tmp_path / "set").path
    before = {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    with pytest.raises(UnarchivedError) as caught:
        add_task(path, base, "law", law)
    for words in (str(forms.scheme), "rewrites", "code, math", "--freeze-shared", "exact,"):
        assert words in str(caught.value)
    assert before == {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_set_under_other_options_is_not_joined(
    tmp_path: Path, base: Path, math: Path, law: Path
) -> None:
    path = build_bank(base, {"math": math}, Forms.parse("tall(mtl=4)"), tmp_path / "set").path
    before = Bank.open(path)
    after = add_task(path, base, "law", law, Forms.parse("tall(mtl=2)"))
    assert after.entry("math") == before.entry("math")
    assert after.entry("law").shared != after.entry("math").shared
    assert len(after.manifest.shared) == 2


@pytest.mark.parametrize("is_frozen", [True, False])
def test_progress_counts_what_is_coded_anew(
    tmp_path: Path, base: Path, math: Path, code: Path, law: Path, is_frozen: bool
) -> None:
    forms = Forms.parse("exact,tall(mtl=4)")
    path = build_bank(base, {"math": math, "code": code}, forms, tmp_path / "set").path
    calls: list[tuple[int, int]] = []
    add_task(
        path,
        base,
        "law",
        law,
        replace(forms, is_frozen=is_frozen),
        lambda *call: calls.append(call),
    )
    # each task that is coded, then all three measured against each other
    total = (4 if is_frozen else 6) * sum(tensor.numel() for tensor in WEIGHTS.values())
    assert {whole for _, whole in calls} == {total}
    assert calls[-1][0] == total


def test_thresholds_of_single_tasks_outlive_a_rewrite(
    tmp_path: Path, base: Path, math: Path, code: Path, law: Path
) -> None:
    forms = replace(Forms.parse("exact,tall(mtl=8)"), thresholds={"math": 0.2})
    path = build_bank(base, {"math": math, "code": code}, forms, tmp_path / "set").path
    after = add_task(path, base, "law", law)
    models = [tuned(WEIGHTS, seed=1), tuned(WEIGHTS, seed=2), LAW]
    total = sum(delta(model, DOWN).double() for model in models)
    for task, threshold, model in zip(
        ("math", "code", "law"), (0.2, 0.4, 0.4), models, strict=True
    ):
        own = delta(model, DOWN).double()
        mask = own.abs() > threshold * (total - own).abs()
        kept = mask * shared_values(after, task, DOWN)
        assert torch.equal(decode(after.read(task, DOWN)), kept)


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_a_frozen_set_is_not_touched(
    tmp_path: Path, base: Path, math: Path, code: Path, law: Path, scheme: str
) -> None:
    sources = {"math": math, "code": code}
    path = build_bank(base, sources, Forms.parse(scheme), tmp_path / "set").path
    before, entries = written(path), Bank.open(path).entries
    after = add_task(path, base, "law", law, frozen(scheme))
    assert {name: time for name, time in written(path).items() if name in before} == before
    assert {task: after.entry(task) for task in entries} == dict(entries)
    assert after.entry("law").shared == after.entry("math").shared
    assert after.entry("law").scheme == after.entry("math").scheme
    (record,) = after.manifest.shared.values()
    assert set(record.derivation.bound) == {"math", "code"}
    assert torch.equal(decode(after.read("law", NORM)), delta(LAW, NORM))
    assert remove_task(path, "law").entries == entries


def test_a_frozen_rtvq_newcomer_is_corrected_like_a_member(
    tmp_path: Path, base: Path, math: Path, law: Path
) -> None:
    scheme = "rtvq(base=2,offset=3)"
    path = build_bank(base, {"math": math}, Forms.parse(scheme), tmp_path / "set").path
    after = add_task(path, base, "law", law, frozen(scheme))
    for name in (EMBEDDING, QUERY, DOWN):
        encoded = after.read("law", name)
        scales = encoded.parts["scales"].double() * encoded.params["factor"]
        step = scales.repeat_interleave(64, dim=1)[:, : LAW[name].shape[1]]
        error = (decode(encoded).double() - delta(LAW, name).double()).abs()
        assert (error <= step / 2 * ROUNDING).all()


def test_a_frozen_tall_newcomer_keeps_where_the_vector_is_nearer_than_zero(
    tmp_path: Path, base: Path, math: Path, code: Path, law: Path
) -> None:
    scheme = "tall(mtl=4,lambda=0.6)"
    sources = {"math": math, "code": code}
    path = build_bank(base, sources, Forms.parse(scheme), tmp_path / "set").path
    after = add_task(path, base, "law", law, frozen(scheme))
    own, shared = delta(LAW, DOWN).double(), shared_values(after, "law", DOWN).double()
    mask = own.abs() > 0.6 * (shared - own).abs()
    assert torch.equal(decode(after.read("law", DOWN)).double(), mask * shared)


def test_a_frozen_emr_newcomer_has_its_own_rescale(
    tmp_path: Path, base: Path, math: Path, code: Path, law: Path
) -> None:
    sources = {"math": math, "code": code}
    path = build_bank(base, sources, Forms.parse("emr(mtl=4)"), tmp_path / "set").path
    after = add_task(path, base, "law", law, frozen("emr(mtl=4)"))
    own = kept = 0.0
    for name in (EMBEDDING, QUERY, DOWN):
        mine, shared = delta(LAW, name).double(), shared_values(after, "law", name).double()
        own += float(mine.abs().sum())
        kept += float((shared * (mine * shared > 0)).abs().sum())
    for name in (EMBEDDING, QUERY, DOWN):
        mine, shared = delta(LAW, name).double(), shared_values(after, "law", name).double()
        expected = own / kept * shared * (mine * shared > 0)
        torch.testing.assert_close(decode(after.read("law", name)).double(), expected)


def test_a_newcomer_codes_by_itself_what_the_frozen_vector_lacks(
    tmp_path: Path, base: Path, law: Path
) -> None:
    narrow = save_model(tmp_path / "narrow", {**WEIGHTS, DOWN: LAW[DOWN]})
    path = build_bank(base, {"one": narrow}, Forms.parse("tall(mtl=4)"), tmp_path / "set").path
    after = add_task(path, base, "law", law, frozen("tall(mtl=4)"))
    encoded = after.read("law", QUERY)
    assert encoded.shared is None
    assert encoded.params["bits"] == 4
    torch.testing.assert_close(decode(encoded), delta(LAW, QUERY), rtol=0, atol=0.02)
    assert after.read("law", DOWN).shared is not None


@pytest.mark.parametrize("num_rows", [2, 9])
def test_a_newcomer_with_rows_that_the_frozen_vector_lacks_is_refused(
    tmp_path: Path, base: Path, num_rows: int
) -> None:
    def model(rows: list[int]) -> dict[str, Tensor]:
        embedding = WEIGHTS[EMBEDDING].clone()
        embedding[rows] = LAW[EMBEDDING][rows]
        return {**WEIGHTS, EMBEDDING: embedding}

    first = save_model(tmp_path / "first", model([2, 5, 7]))
    path = build_bank(base, {"first": first}, Forms.parse("tall"), tmp_path / "set").path
    inside = save_model(tmp_path / "inside", model([5]))
    added = add_task(path, base, "inside", inside, frozen("tall"))
    assert decode(added.read("inside", EMBEDDING)).any(dim=1).nonzero().tolist() == [[5]]
    same = save_model(tmp_path / "same", WEIGHTS)
    assert not decode(
        add_task(path, base, "same", same, frozen("tall")).read("same", EMBEDDING)
    ).any()
    outside = save_model(tmp_path / "outside", model(list(range(num_rows))))
    before = sorted(path.rglob("*"))
    with pytest.raises(BaseMismatchError, match="task outside changes rows of") as caught:
        add_task(path, base, "outside", outside, frozen("tall"))
    assert EMBEDDING in str(caught.value)
    assert "without --freeze-shared" in str(caught.value)
    assert sorted(path.rglob("*")) == before


@pytest.mark.parametrize("scheme", ["int4", "tall(mtl=2)", "emr(mtl=4)"])
def test_only_a_vector_that_is_there_can_be_frozen(
    tmp_path: Path, base: Path, math: Path, law: Path, scheme: str
) -> None:
    path = build_bank(base, {"math": math}, Forms.parse("tall(mtl=4)"), tmp_path / "set").path
    with pytest.raises(InvalidSchemeError, match="has no shared vector under") as caught:
        add_task(path, base, "law", law, frozen(scheme))
    assert str(Forms.parse(scheme).scheme) in str(caught.value)
    with pytest.raises(TaskExistsError):
        add_task(path, base, "math", law, frozen("tall(mtl=4)"))


def test_the_frozen_vector_is_the_one_that_most_of_the_set_has(
    tmp_path: Path, base: Path, math: Path, code: Path, law: Path
) -> None:
    sources = {"alone": law, "math": math, "code": code}
    path = build_bank(base, sources, Forms.parse("exact,int4"), tmp_path / "bank").path
    recode_bank(path, base, Forms.parse("tall"), ("alone",))
    two = recode_bank(path, base, Forms.parse("tall"), ("math", "code"))
    assert two.entry("alone").shared != two.entry("math").shared
    added = add_task(path, base, "law", law, frozen("tall"))
    assert added.entry("law").shared == two.entry("math").shared


def test_adapters_keep_their_factors_beside_a_frozen_set(
    tmp_path: Path, base: Path, math: Path, adapter: Path
) -> None:
    path = build_bank(base, {"math": math}, Forms.parse("tall"), tmp_path / "set").path
    before = Bank.open(path).entry("math")
    for name, forms in {"one": frozen("tall"), "two": Forms.parse("tall"), "six": None}.items():
        added = add_task(path, base, name, adapter, forms)
        assert added.entry(name).scheme == "lowrank"
        assert added.entry(name).shared == ""
        assert added.entry("math") == before
        a, b = make_factors().values()
        torch.testing.assert_close(decode(added.read(name, QUERY)), 2.0 * b @ a)


@pytest.mark.parametrize("scheme", SET_BOUND)
def test_removing_a_member_keeps_the_shared_vector_until_the_last(
    tmp_path: Path, base: Path, math: Path, code: Path, scheme: str
) -> None:
    sources = {"math": math, "code": code}
    path = build_bank(base, sources, Forms.parse(scheme), tmp_path / "set").path
    before, times = Bank.open(path), written(path)
    after = remove_task(path, "code")
    assert after.manifest.shared == before.manifest.shared
    assert after.entry("math") == before.entry("math")
    assert written(path) == {name: times[name] for name in times if name[:5] != "code-"}
    assert torch.equal(decode(after.read("math", QUERY)), decode(before.read("math", QUERY)))
    empty = remove_task(path, "math")
    assert empty.manifest.shared == {}
    assert written(path) == {}
