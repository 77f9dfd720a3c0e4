"""The stored table of inner products against sums over the decoded vectors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskmix_composer import gram as gram_module
from taskmix_composer.bank import Bank
from taskmix_composer.bank.writer import publish
from taskmix_composer.build import add_task, build_bank, recode_bank, remove_task
from taskmix_composer.errors import BankFormatError
from taskmix_composer.forms import Forms
from taskmix_composer.gram import without_task
from taskmix_composer.publish import MergeRequest, merge_tasks
from taskmix_composer.quant import decode
from tests.unit.composer.models import EMBEDDING, QUERY, make_weights, save_model, tuned

WEIGHTS = make_weights()


def products(bank: Bank) -> Tensor:
    """Inner products of what each task decodes to, float64 [tensors, tasks, tasks], one by one."""
    names, tasks = sorted(bank.base.tensors), sorted(bank.entries)
    table = torch.zeros(len(names), len(tasks), len(tasks), dtype=torch.float64)
    for number, name in enumerate(names):
        vectors = [
            decode(bank.read(task, name), WEIGHTS[name]).double().flatten()
            if name in bank.entry(task).tensors
            else torch.zeros(WEIGHTS[name].numel(), dtype=torch.float64)
            for task in tasks
        ]
        for row, one in enumerate(vectors):
            for column, other in enumerate(vectors):
                table[number, row, column] = (one * other).sum()
    return table


def assert_measured(bank: Bank) -> None:
    opened = Bank.open(bank.path)
    table = opened.read_gram()
    assert table is not None
    assert table.dtype == torch.float64
    assert opened.manifest.gram is not None
    assert opened.manifest.gram.tasks == tuple(sorted(opened.entries))
    torch.testing.assert_close(table, products(opened), rtol=1e-12, atol=1e-12)
    files = [file.name for file in (bank.path / "shards").glob("gram-*")]
    assert len(files) == 1


@pytest.mark.parametrize(
    "scheme", ["exact", "dense", "int4", "exact,rtvq", "tall", "emr", "sign", "sparse", "lowrank"]
)
def test_the_table_is_of_the_decoded_vectors(
    tmp_path: Path, base: Path, math: Path, code: Path, adapter: Path, scheme: str
) -> None:
    sources = {"math": math, "code": code, "lora": adapter}
    assert_measured(build_bank(base, sources, Forms.parse(scheme), tmp_path / "bank"))


def test_the_table_follows_every_change(
    tmp_path: Path, base: Path, math: Path, code: Path, adapter: Path
) -> None:
    rows = {**WEIGHTS, EMBEDDING: WEIGHTS[EMBEDDING].clone()}
    rows[EMBEDDING][[2, 5]] += 1
    path = build_bank(base, {"math": math}, Forms.parse("exact,int4"), tmp_path / "bank").path
    assert_measured(add_task(path, base, "rows", save_model(tmp_path / "rows", rows)))
    assert_measured(add_task(path, base, "code", code))
    assert_measured(add_task(path, base, "lora", adapter))
    coarse = Bank.open(path).read_gram()
    recoded = recode_bank(path, base, Forms.parse("tall"))
    assert_measured(recoded)
    assert not torch.equal(recoded.read_gram(), coarse)
    assert_measured(
        add_task(path, base, "frozen", code, replace(Forms.parse("tall"), is_frozen=True))
    )
    request = MergeRequest("magmax", ("math", "code"), {"lambda": 0.5}, "merged")
    assert_measured(merge_tasks(path, base, request)[0])
    planes = replace(request, is_planes=True)
    with_planes, _ = merge_tasks(path, base, planes)
    assert with_planes.manifest.gram == Bank.open(path).manifest.gram
    assert_measured(with_planes)
    for task in ("math", "merged", "lora"):
        assert_measured(remove_task(path, task))
    for task in ("rows", "code", "frozen"):
        remove_task(path, task)
    assert Bank.open(path).manifest.gram is None
    assert Bank.open(path).read_gram() is None
    assert list((path / "shards").glob("gram-*")) == []
    assert_measured(add_task(path, base, "again", math))


def test_a_bank_of_nothing_has_no_table(tmp_path: Path, base: Path) -> None:
    bank = build_bank(base, {}, Forms(), tmp_path / "empty")
    assert bank.manifest.gram is None
    assert bank.read_gram() is None


def test_tasks_that_change_nothing_have_a_table_of_zeros(tmp_path: Path, base: Path) -> None:
    bank = build_bank(base, {"same": base, "twin": base}, Forms(), tmp_path / "bank")
    assert_measured(bank)
    assert not bank.read_gram().any()


def test_the_table_does_not_depend_on_the_order_of_the_tasks(
    tmp_path: Path, base: Path, math: Path, code: Path
) -> None:
    forward = build_bank(base, {"math": math, "code": code}, Forms(), tmp_path / "one")
    backward = build_bank(base, {"code": code, "math": math}, Forms(), tmp_path / "two")
    assert forward.manifest.gram == backward.manifest.gram
    assert torch.equal(forward.read_gram(), forward.read_gram().transpose(1, 2))


def test_long_tensors_are_summed_in_pieces(
    tmp_path: Path, base: Path, math: Path, code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram_module, "_CHUNK", 7)
    assert_measured(build_bank(base, {"math": math, "code": code}, Forms(), tmp_path / "bank"))


def test_removing_a_task_takes_out_its_row_and_column() -> None:
    table = torch.arange(2 * 9, dtype=torch.float64).view(2, 3, 3)
    tasks = ("a", "b", "c")
    expected = torch.tensor([[[0, 2], [6, 8]], [[9, 11], [15, 17]]], dtype=torch.float64)
    assert torch.equal(without_task(table, tasks, "b"), expected)
    assert without_task(table[:, :1, :1], ("a",), "a").shape == (2, 0, 0)


def test_a_bank_may_lack_the_table(bank: Path) -> None:
    publish(bank, replace(Bank.open(bank).manifest, gram=None))
    opened = Bank.open(bank)
    assert opened.read_gram() is None
    assert remove_task(bank, "math").manifest.gram is None


def test_a_damaged_table_is_found(bank: Path) -> None:
    file = next((bank / "shards").glob("gram-*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(BankFormatError, match="does not match its digest") as caught:
        Bank.open(bank).read_gram()
    assert caught.value.path == file


def test_the_diagonal_is_the_squared_length(tmp_path: Path, base: Path, math: Path) -> None:
    bank = build_bank(base, {"math": math}, Forms.parse("dense"), tmp_path / "bank")
    delta = tuned(WEIGHTS, seed=1)[QUERY].double() - WEIGHTS[QUERY].double()
    place = sorted(WEIGHTS).index(QUERY)
    assert float(bank.read_gram()[place]) == pytest.approx(float(delta.norm()) ** 2, rel=1e-6)
