import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.build import add_task, build_bank, remove_task
from taskmix_composer.config import Scheme
from taskmix_composer.errors import (
    BankExistsError,
    BaseMismatchError,
    CheckpointError,
    ComposerError,
    InvalidMixError,
    TaskExistsError,
    UnknownTaskError,
)
from taskmix_composer.forms import Forms
from taskmix_composer.quant import decode
from tests.unit.composer.models import (
    DOWN,
    EMBEDDING,
    HEAD,
    NORM,
    QUERY,
    make_factors,
    make_weights,
    save_adapter,
    save_model,
    save_sharded,
    tuned,
)

DENSE = Forms(Scheme("dense"))


def built(tmp_path: Path, base: Path, source: Path, forms: Forms = DENSE) -> Bank:
    return build_bank(base, {"task": source}, forms, tmp_path / "built")


def test_unchanged_tensors_and_rows_are_not_stored(tmp_path: Path, base: Path) -> None:
    weights = make_weights()
    changed = {**weights, DOWN: weights[DOWN] + 1, EMBEDDING: weights[EMBEDDING].clone()}
    changed[EMBEDDING][[2, 9]] += 1
    bank = built(tmp_path, base, save_model(tmp_path / "m", changed), Forms(Scheme("int8")))
    assert set(bank.entry("task").tensors) == {DOWN, EMBEDDING}
    encoded = bank.read("task", EMBEDDING)
    assert encoded.rows is not None
    assert encoded.rows.tolist() == [2, 9]
    assert encoded.coded_shape == (2, 20)


def test_a_task_equal_to_the_base_has_no_deltas(tmp_path: Path, base: Path) -> None:
    bank = built(tmp_path, base, base)
    assert bank.entry("task").tensors == {}
    assert Bank.open(bank.path).revision == bank.revision


def test_sharded_float32_fine_tunes_of_a_bfloat16_base(tmp_path: Path, base: Path) -> None:
    weights = make_weights()
    wide = {name: tensor.float() + 1e-4 for name, tensor in weights.items()}
    parts = [{name: tensor} for name, tensor in wide.items()]
    bank = built(tmp_path, base, save_sharded(tmp_path / "m", parts))
    for name in weights:
        assert torch.equal(decode(bank.read("task", name)), wide[name] - weights[name].float())
    assert bank.entry("task").provenance.dtype == "F32"


def test_adapters_keep_their_factors_whatever_the_scheme(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    bank = built(tmp_path, base, adapter, Forms(Scheme("int4")))
    assert bank.entry("task").scheme == "lowrank"
    encoded = bank.read("task", QUERY)
    a, b = make_factors().values()
    assert torch.equal(encoded.parts["a"], a)
    assert torch.equal(encoded.parts["b"], b)
    torch.testing.assert_close(decode(encoded), 2.0 * b @ a)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in make_factors().items()}
    untouched = save_adapter(tmp_path / "zero", zeros)
    assert add_task(bank.path, base, "zero", untouched).entry("zero").tensors == {}


def test_an_untied_base_takes_tied_and_untied_fine_tunes(tmp_path: Path) -> None:
    weights = make_weights()
    weights[HEAD] = weights[EMBEDDING] * 2
    base = save_model(tmp_path / "base-u", weights, tie_word_embeddings=False)
    changed = tuned(weights)
    untied = save_model(tmp_path / "u", changed, tie_word_embeddings=False)
    del changed[HEAD]
    tied = save_model(tmp_path / "t", changed)
    bank = build_bank(base, {"untied": untied, "tied": tied}, DENSE, tmp_path / "built")
    expected = changed[EMBEDDING].float() - weights[HEAD].float()
    assert torch.equal(decode(bank.read("tied", HEAD)), expected)
    assert bank.base.tie_groups == ()
    assert not torch.equal(decode(bank.read("untied", HEAD)), expected)


def test_buffers_that_are_not_floats(tmp_path: Path) -> None:
    buffer = {"model.ids": torch.arange(4), "model.empty": torch.zeros(0, 3)}
    weights = {**make_weights(), **buffer}
    base = save_model(tmp_path / "base-b", weights)
    same = save_model(tmp_path / "same", {**tuned(make_weights()), **buffer})
    assert "model.ids" not in built(tmp_path, base, same).entry("task").tensors
    other = save_model(tmp_path / "other", {**weights, "model.ids": torch.arange(4) + 1})
    with pytest.raises(CheckpointError, match=r"model\.ids is a torch\.int64 buffer"):
        build_bank(base, {"other": other}, DENSE, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("weights", "config", "error", "message"),
    [
        ({HEAD: torch.ones(12, 20)}, {"tie_word_embeddings": False}, BaseMismatchError, HEAD),
        ({"score.weight": torch.ones(2, 20)}, {}, BaseMismatchError, r"it has score\.weight"),
        ({NORM: None}, {}, BaseMismatchError, f"it lacks {NORM}"),
        (
            {EMBEDDING: torch.ones(14, 20)},
            {},
            BaseMismatchError,
            rf"{EMBEDDING} is \[14, 20\].*resize",
        ),
        ({QUERY: torch.ones(20, 20).int()}, {}, BaseMismatchError, f"{QUERY} is torch.int32"),
        ({QUERY: torch.full((20, 20), torch.nan)}, {}, CheckpointError, f"{QUERY} contains NaN"),
        ({DOWN: torch.full((20, 36), torch.inf)}, {}, CheckpointError, f"{DOWN} contains NaN or"),
        ({}, {"rope_theta": 5e5, "hidden_act": "x"}, BaseMismatchError, "rope.rope_theta"),
    ],
)
def test_models_that_are_not_fine_tunes_are_refused_by_name(
    tmp_path: Path,
    base: Path,
    weights: dict[str, Tensor | None],
    config: dict[str, object],
    error: type[ComposerError],
    message: str,
) -> None:
    kept = {name: t for name, t in {**make_weights(), **weights}.items() if t is not None}
    source = save_model(tmp_path / "m", kept, **config)
    with pytest.raises(error, match=message):
        built(tmp_path, base, source)
    assert not (tmp_path / "built").exists()


def test_adapters_that_do_not_fit_are_refused_by_name(tmp_path: Path, base: Path) -> None:
    factors = make_factors()
    key_a, key_b = factors
    head = {
        "base_model.model.lm_head.lora_A.weight": torch.ones(2, 20),
        "base_model.model.lm_head.lora_B.weight": torch.ones(12, 2),
    }
    unknown = {key.replace("q_proj", "r_proj"): tensor for key, tensor in factors.items()}
    short = {**factors, key_b: torch.ones(19, 2)}
    damaged = {**factors, key_a: torch.full((2, 20), torch.nan)}
    for name, (tensors, message) in {
        "head": (head, f"it adapts {HEAD}, which the base ties"),
        "unknown": (unknown, "it adapts .*r_proj.weight, which the base lacks"),
        "short": (short, r"the adapter's factors give \[19, 20\]"),
        "damaged": (damaged, f"{QUERY} contains NaN"),
    }.items():
        source = save_adapter(tmp_path / name, tensors)
        with pytest.raises((BaseMismatchError, CheckpointError), match=message):
            built(tmp_path, base, source)


def test_names_and_paths_that_are_taken_or_bad(bank: Path, base: Path, math: Path) -> None:
    with pytest.raises(BankExistsError, match="exists already"):
        build_bank(base, {"a": math}, DENSE, bank)
    with pytest.raises(TaskExistsError, match="'math' already; remove it first"):
        add_task(bank, base, "math", math)
    with pytest.raises(InvalidMixError, match="reserved"):
        add_task(bank, base, "base", math)
    with pytest.raises(InvalidMixError, match="not a task name"):
        build_bank(base, {"../a": math}, DENSE, bank.parent / "other")
    with pytest.raises(UnknownTaskError):
        remove_task(bank, "law")
    assert sorted(Bank.open(bank).entries) == ["code", "math"]


def test_adding_to_a_bank_of_another_base_is_refused(
    bank: Path, math: Path, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other", tuned(make_weights(), seed=9))
    with pytest.raises(BaseMismatchError, match="is not the base of"):
        add_task(bank, other, "law", math)


def test_added_tasks_take_the_usual_scheme(
    tmp_path: Path, base: Path, math: Path, adapter: Path
) -> None:
    bank = build_bank(base, {"lora": adapter}, DENSE, tmp_path / "built").path
    assert add_task(bank, base, "a", math).entry("a").scheme == "int4(group=64)"
    assert (
        add_task(bank, base, "b", math, Forms(Scheme.of("int8", group=16))).entry("b").scheme
        == "int8(group=16)"
    )
    assert (
        add_task(bank, base, "c", math, Forms(Scheme.of("int8", group=16))).entry("c").scheme
        == "int8(group=16)"
    )
    assert add_task(bank, base, "d", math).entry("d").scheme == "int8(group=16)"


def test_adding_and_removing_leaves_the_others_alone(bank: Path, base: Path, math: Path) -> None:
    def written() -> dict[str, int]:
        shards = (bank / "shards").glob("[!g]*")  # all but the table of inner products
        return {path.name: path.stat().st_mtime_ns for path in shards}

    before = written()
    revision = Bank.open(bank).revision
    add_task(bank, base, "law", math)
    assert remove_task(bank, "law").revision == revision
    assert written() == before


def test_a_failed_addition_changes_nothing(bank: Path, base: Path, tmp_path: Path) -> None:
    damaged = save_model(tmp_path / "m", {**make_weights(), NORM: torch.full((20,), torch.nan)})
    before = sorted(path.name for path in bank.rglob("*"))
    revision = Bank.open(bank).revision
    with pytest.raises(CheckpointError, match=NORM):
        add_task(bank, base, "law", damaged)
    assert sorted(path.name for path in bank.rglob("*")) == before
    assert Bank.open(bank).revision == revision


def test_progress_counts_every_parameter(
    tmp_path: Path, base: Path, math: Path, adapter: Path
) -> None:
    calls: list[tuple[int, int]] = []
    num_parameters = sum(tensor.numel() for tensor in make_weights().values())
    tasks = {"math": math, "lora": adapter}
    build_bank(base, tasks, DENSE, tmp_path / "b", lambda *call: calls.append(call))
    # the base once, and each task twice: coded, then measured against the others
    assert calls[-1] == (5 * num_parameters, 5 * num_parameters)
    assert [done for done, _ in calls] == sorted({done for done, _ in calls})


def test_provenance_names_the_source_without_its_path(
    bank: Path, base: Path, math: Path, tmp_path: Path
) -> None:
    first = Bank.open(bank).entry("math").provenance
    assert first.source == "math-model"
    weights = save_model(tmp_path / "elsewhere", tuned(make_weights(), seed=1))
    assert add_task(bank, base, "copy", weights).entry("copy").provenance.digest == first.digest
    assert Bank.open(bank).entry("code").provenance.digest != first.digest
    assert json.loads((bank / "bank.json").read_text())["entries"]["math"]["provenance"] == {
        "source": "math-model",
        "digest": first.digest,
        "dtype": "BF16",
    }
