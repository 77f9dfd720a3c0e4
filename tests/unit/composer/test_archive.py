"""Exact entries: what a bank gives back without the directories it was built from."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskmix_composer.archive import Archive, Decoded
from taskmix_composer.bank import Bank
from taskmix_composer.bank.records import EntryRecord
from taskmix_composer.build import add_task, build_bank, recode_bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.errors import (
    BankFormatError,
    BaseMismatchError,
    CheckpointError,
    InvalidSchemeError,
    UnarchivedError,
    UnknownTaskError,
)
from taskmix_composer.forms import Forms
from taskmix_composer.publish import MergeRequest, merge_tasks
from taskmix_composer.quant import archival, decode
from taskmix_composer.taskvector import check_source
from taskmix_composer.tensorfile import tensor_bytes
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

FORMS = ("exact", "exact,int4", "exact,tall(mtl=4)")
RECODED = (
    "dense",
    "int4(group=16)",
    "rtvq(base=3,offset=2)",
    "tall(mtl=4)",
    "emr(mtl=4)",
    "sign(salient=0.1)",
    "sparse(density=0.2)",
    "lowrank(rank=2)",
)


def odd_model() -> dict[str, Tensor]:
    """A fine-tune with zeros of both signs, subnormals and the largest numbers."""
    model = tuned(make_weights(), seed=4)
    model[QUERY][0, :4] = torch.tensor([-0.0, 0.0, 9.2e-41, -9.2e-41]).bfloat16()
    model[QUERY][1, :2] = torch.tensor([3.3895e38, -3.3895e38]).bfloat16()
    return model


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    return tensor.dtype, tuple(tensor.shape), bytes(tensor_bytes(tensor))


def assert_restored(bank: Bank, base: Path, task: str, model: dict[str, Tensor]) -> None:
    archive = Archive.open(bank, task)
    for name, tensor in model.items():
        assert bits(archive.tuned(Checkpoint.open(base), name)) == bits(tensor)


def remake(entry: EntryRecord) -> dict[str, object]:
    """What of an entry must not depend on how it came about."""
    archive = None if entry.archive is None else entry.archive.digest
    return {
        "digest": entry.digest,
        "content": entry.content,
        "archive": archive,
        "scheme": entry.scheme,
        "shared": entry.shared,
        "provenance": entry.provenance,
    }


@pytest.mark.parametrize("form", FORMS)
def test_bfloat16_fine_tunes_come_back_bit_for_bit(tmp_path: Path, base: Path, form: str) -> None:
    model = odd_model()
    source = save_model(tmp_path / "odd", model)
    bank = build_bank(base, {"odd": source}, Forms.parse(form), tmp_path / "bank")
    shutil.rmtree(source)
    assert_restored(Bank.open(bank.path), base, "odd", model)


@pytest.mark.parametrize("form", FORMS)
def test_float32_fine_tunes_of_a_bfloat16_base_come_back(
    tmp_path: Path, base: Path, form: str
) -> None:
    model = {name: tensor.float() for name, tensor in make_weights().items()}
    model[DOWN] = model[DOWN] + 1e-4
    model[NORM] = model[NORM] * (1 + 2.0**-20)
    source = save_model(tmp_path / "wide", model)
    bank = build_bank(base, {"wide": source}, Forms.parse(form), tmp_path / "bank")
    assert_restored(bank, base, "wide", model)
    delta = Archive.open(bank, "wide").delta(Checkpoint.open(base), DOWN)
    assert torch.equal(delta, model[DOWN] - make_weights()[DOWN].float())


def test_a_zero_of_the_other_sign_is_kept_though_it_adds_nothing(tmp_path: Path) -> None:
    weights = {**make_weights(), QUERY: torch.zeros(20, 20).bfloat16()}
    base = save_model(tmp_path / "base", weights)
    model = {**weights, QUERY: -weights[QUERY]}
    source = save_model(tmp_path / "negative", model)
    bank = build_bank(base, {"t": source}, Forms.parse("exact"), tmp_path / "bank")
    assert set(bank.entry("t").tensors) == {QUERY}
    assert_restored(bank, base, "t", model)
    assert not decode(bank.read("t", QUERY), weights[QUERY]).any()
    served = build_bank(base, {"t": source}, Forms.parse("exact,int4"), tmp_path / "both")
    assert served.entry("t").tensors == {}
    assert_restored(served, base, "t", model)


def test_tensors_that_did_not_change_are_not_archived(tmp_path: Path, base: Path) -> None:
    weights = make_weights()
    source = save_model(tmp_path / "m", {**weights, DOWN: tuned(weights)[DOWN]})
    bank = build_bank(base, {"t": source}, Forms.parse("exact"), tmp_path / "bank")
    assert set(bank.entry("t").tensors) == {DOWN}
    archive = Archive.open(bank, "t")
    assert archive.delta(Checkpoint.open(base), QUERY) is None
    assert bits(archive.tuned(Checkpoint.open(base), QUERY)) == bits(weights[QUERY])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("damage", [torch.nan, torch.inf])
def test_damaged_fine_tunes_are_refused_as_by_any_scheme(
    tmp_path: Path, base: Path, form: str, damage: float
) -> None:
    model = make_weights()
    model[QUERY][3, 3] = damage
    source = save_model(tmp_path / "m", model)
    with pytest.raises(CheckpointError, match=f"{QUERY} contains NaN or infinity"):
        build_bank(base, {"t": source}, Forms.parse(form), tmp_path / "bank")
    assert not (tmp_path / "bank").exists()


def test_buffers_that_are_not_floats_must_be_the_bases_own(tmp_path: Path) -> None:
    weights = {**make_weights(), "model.ids": torch.arange(4), "model.empty": torch.zeros(0, 3)}
    base = save_model(tmp_path / "base-b", weights)
    model = {**weights, DOWN: tuned(make_weights())[DOWN]}
    source = save_model(tmp_path / "same", model)
    bank = build_bank(base, {"t": source}, Forms.parse("exact"), tmp_path / "bank")
    assert set(bank.entry("t").tensors) == {DOWN}
    assert_restored(bank, base, "t", model)
    other = save_model(tmp_path / "other", {**weights, "model.ids": torch.arange(4) + 1})
    with pytest.raises(CheckpointError, match=r"model\.ids is a torch\.int64 buffer"):
        build_bank(base, {"t": other}, Forms.parse("exact"), tmp_path / "refused")


def test_exact_entries_need_the_base_to_decode(tmp_path: Path, base: Path, math: Path) -> None:
    bank = build_bank(base, {"math": math}, Forms.parse("exact"), tmp_path / "bank")
    encoded = bank.read("math", QUERY)
    with pytest.raises(InvalidSchemeError, match="give the base model too"):
        decode(encoded)
    expected = tuned(make_weights())[QUERY].float() - make_weights()[QUERY].float()
    assert torch.equal(decode(encoded, make_weights()[QUERY]), expected)


def test_an_exact_tensor_over_another_base_is_a_named_error(tmp_path: Path, base: Path) -> None:
    source = save_model(tmp_path / "m", tuned(make_weights(), size=0.01))
    bank = build_bank(base, {"t": source}, Forms.parse("exact"), tmp_path / "bank")
    encoded = bank.read("t", DOWN)
    assert encoded.codec == "exact"
    with pytest.raises(BankFormatError, match="cannot be restored"):
        archival.restore(make_weights(seed=9)[EMBEDDING], encoded)


@pytest.mark.parametrize("scheme", RECODED)
def test_recoding_makes_what_a_build_from_the_directories_makes(
    tmp_path: Path, base: Path, math: Path, code: Path, scheme: str
) -> None:
    sources = {"math": math, "code": code, "odd": save_model(tmp_path / "odd", odd_small())}
    archived = build_bank(base, sources, Forms.parse("exact"), tmp_path / "archived").path
    original = build_bank(base, sources, Forms.parse(f"exact,{scheme}"), tmp_path / "original")
    for source in sources.values():
        shutil.rmtree(source)
    recoded = recode_bank(archived, base, Forms.parse(scheme))
    for task in sources:
        assert remake(recoded.entry(task)) == remake(original.entry(task))
    assert recoded.manifest.shared == original.manifest.shared
    assert recoded.revision == original.revision
    assert_restored(recoded, base, "odd", odd_small())


def odd_small() -> dict[str, Tensor]:
    """A fine-tune whose embedding changed in three rows, and which left QUERY alone."""
    model = tuned(make_weights(), seed=7)
    embedding = make_weights()[EMBEDDING]
    embedding[[1, 4, 9]] = model[EMBEDDING][[1, 4, 9]]
    return {**model, EMBEDDING: embedding, QUERY: make_weights()[QUERY]}


def test_recoding_there_and_back_changes_nothing(
    tmp_path: Path, base: Path, math: Path, code: Path
) -> None:
    sources = {"math": math, "code": code}
    built = build_bank(base, sources, Forms.parse("exact"), tmp_path / "bank")
    path, revision = built.path, built.revision
    files = sorted(file.name for file in (path / "shards").iterdir())
    assert recode_bank(path, base, Forms.parse("tall(mtl=2)")).manifest.shared
    assert recode_bank(path, base, Forms.parse("exact,int2")).manifest.shared == {}
    assert recode_bank(path, base, Forms.parse("exact")).revision == revision
    assert sorted(file.name for file in (path / "shards").iterdir()) == files


def test_recoding_some_tasks_leaves_the_others_alone(
    tmp_path: Path, base: Path, math: Path, code: Path
) -> None:
    sources = {"math": math, "code": code}
    path = build_bank(base, sources, Forms.parse("exact,tall(mtl=4)"), tmp_path / "bank").path
    before = Bank.open(path)
    after = recode_bank(path, base, Forms.parse("int8"), ("math",))
    assert after.entry("math").scheme == "int8(group=64)"
    assert after.entry("math").exact == before.entry("math").exact
    assert after.entry("code") == before.entry("code")
    assert after.manifest.shared == before.manifest.shared
    expected = decode(before.read("code", QUERY))
    assert torch.equal(decode(after.read("code", QUERY)), expected)
    last = recode_bank(path, base, Forms.parse("int8"), ("code",))
    assert last.manifest.shared == {}


def test_recoding_leaves_adapters_and_derived_entries_unless_they_are_named(
    tmp_path: Path, base: Path, math: Path, adapter: Path
) -> None:
    sources = {"math": math, "lora": adapter}
    path = build_bank(base, sources, Forms.parse("exact"), tmp_path / "bank").path
    request = MergeRequest("magmax", ("math", "lora"), {"lambda": 0.5}, "merged")
    before = merge_tasks(path, base, request)[0]
    after = recode_bank(path, base, Forms.parse("int4"))
    assert after.entry("math").scheme == "int4(group=64)"
    assert after.entry("lora") == before.entry("lora")
    assert after.entry("merged") == before.entry("merged")
    assert recode_bank(path, base, Forms.parse("int2"), ("lora",)).entry("lora") == before.entry(
        "lora"
    )
    with pytest.raises(UnarchivedError, match="'merged'"):
        recode_bank(path, base, Forms.parse("int2"), ("merged",))
    with pytest.raises(UnknownTaskError, match="'law'"):
        recode_bank(path, base, Forms.parse("int2"), ("law",))


def test_a_compressed_task_cannot_be_recoded(
    tmp_path: Path, base: Path, math: Path, code: Path
) -> None:
    sources = {"math": math, "code": code}
    path = build_bank(base, sources, Forms.parse("int4(group=16)"), tmp_path / "bank").path
    revision = Bank.open(path).revision
    with pytest.raises(UnarchivedError) as caught:
        recode_bank(path, base, Forms.parse("int2"))
    for words in (str(path), "'code'", "int4(group=16) only", "`exact,` before its --scheme"):
        assert words in str(caught.value)
    assert Bank.open(path).revision == revision


def test_recoding_over_another_base_is_refused(bank: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", tuned(make_weights(), seed=9))
    with pytest.raises(BaseMismatchError, match="is not the base of"):
        recode_bank(bank, other, Forms.parse("int4"))


def test_adapters_are_archives_of_their_own(tmp_path: Path, base: Path, adapter: Path) -> None:
    for form in ("int4", "exact,int4", "exact"):
        path = tmp_path / form
        bank = build_bank(base, {"lora": adapter}, Forms.parse(form), path)
        assert bank.entry("lora").archive is None
        assert bank.entry("lora").exact is None
        archive = Archive.open(bank, "lora")
        checkpoint = Checkpoint.open(base)
        a, b = make_factors().values()
        assert archive.is_adapter
        torch.testing.assert_close(archive.delta(checkpoint, QUERY), 2.0 * b @ a)
        assert archive.delta(checkpoint, DOWN) is None
        check_source(checkpoint, archive)


def test_what_is_archived_is_not_what_is_served(tmp_path: Path, base: Path, math: Path) -> None:
    bank = build_bank(base, {"math": math}, Forms.parse("exact,int2"), tmp_path / "bank")
    checkpoint = Checkpoint.open(base)
    exact = Archive.open(bank, "math").delta(checkpoint, DOWN)
    served = Decoded(bank, "math").delta(checkpoint, DOWN)
    assert torch.equal(exact, tuned(make_weights())[DOWN].float() - make_weights()[DOWN].float())
    assert torch.equal(served, decode(bank.read("math", DOWN)))
    assert not torch.equal(served, exact)
    lean = save_model(tmp_path / "lean", {**make_weights(), DOWN: tuned(make_weights())[DOWN]})
    added = add_task(bank.path, base, "lean", lean)
    assert Decoded(added, "lean").delta(checkpoint, QUERY) is None
    entry = bank.entry("math")
    assert entry.archive is not None
    assert entry.num_bytes == entry.content.shard.num_bytes + entry.archive.shard.num_bytes


def test_an_added_task_is_archived_as_most_tasks_are(
    tmp_path: Path, base: Path, math: Path, code: Path
) -> None:
    path = build_bank(base, {"math": math}, Forms.parse("exact,int4"), tmp_path / "both").path
    added = add_task(path, base, "code", code).entry("code")
    assert added.scheme == "int4(group=64)"
    assert added.archive is not None
    assert_restored(Bank.open(path), base, "code", tuned(make_weights(), seed=2))
    lean = add_task(path, base, "lean", code, Forms.parse("int4")).entry("lean")
    assert lean.archive is None
    assert lean.digest == added.digest
