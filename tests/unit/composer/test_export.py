import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.build import add_task, build_bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.compose import merged_tensor
from taskmix_composer.config import Scheme
from taskmix_composer.errors import (
    BankExistsError,
    BaseMismatchError,
    InvalidMixError,
    UnknownTaskError,
)
from taskmix_composer.export import export_checkpoint
from taskmix_composer.forms import Forms
from taskmix_composer.mix import BASE_MIX, Mix, Term
from taskmix_composer.quant import decode
from taskmix_composer.tensorfile import tensor_bytes
from tests.support.planes import add_planes, random_masks
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

MATH, CODE = tuned(make_weights(), seed=1), tuned(make_weights(), seed=2)


def exported(bank: Path, base: Path, mix: Mix, dtype: torch.dtype | None = None) -> Path:
    out = bank.parent / "exported"
    export_checkpoint(Bank.open(bank), Checkpoint.open(base), mix, out, dtype)
    return out


def expected(name: str, math: float, code: float) -> Tensor:
    """Base plus both deltas, in float64."""
    base = make_weights()[name].double()
    return base + math * (MATH[name].double() - base) + code * (CODE[name].double() - base)


def test_the_base_is_reproduced_bit_for_bit(bank: Path, base: Path) -> None:
    out = exported(bank, base, BASE_MIX)
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == make_weights().keys()
    for name, tensor in make_weights().items():
        assert torch.equal(weights[name].view(torch.int16), tensor.view(torch.int16))
    assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()


def test_a_single_task_gives_its_fine_tune_back(bank: Path, base: Path) -> None:
    weights = load_file(exported(bank, base, Mix.parse("math")) / "model.safetensors")
    for name, tensor in MATH.items():
        assert torch.equal(weights[name], tensor)


def test_mixes_are_summed_in_float32_and_rounded_once(bank: Path, base: Path) -> None:
    scaled = Term("math", 0.6, (), ((0, -1.5),), ((NORM, 0.0),))
    mix = Mix((scaled, Term("code", -0.3)))
    weights = load_file(exported(bank, base, mix, torch.float32) / "model.safetensors")
    for name, coefficient in {EMBEDDING: 0.6, QUERY: -1.5, DOWN: 0.6, NORM: 0.0}.items():
        reference = expected(name, coefficient, -0.3).float()
        torch.testing.assert_close(weights[name], reference, rtol=1e-6, atol=1e-6)
        assert weights[name].dtype == torch.float32
    rounded = Bank.open(bank)
    tensor = merged_tensor(make_weights()[QUERY], rounded, mix, QUERY)
    assert tensor.dtype == torch.float32
    again = bank.parent / "rounded"
    export_checkpoint(rounded, Checkpoint.open(base), mix, again)
    assert torch.equal(load_file(again / "model.safetensors")[QUERY], tensor.bfloat16())


def test_merging_leaves_the_base_alone(bank: Path) -> None:
    base = torch.zeros(20)
    merged_tensor(base, Bank.open(bank), Mix.parse("math"), NORM)
    assert not base.any()


def test_changed_rows_and_adapters_are_added(
    bank: Path, base: Path, adapter: Path, tmp_path: Path
) -> None:
    rows = make_weights()
    rows[EMBEDDING][3] += 1
    add_task(bank, base, "rows", save_model(tmp_path / "rows", rows))
    add_task(bank, base, "lora", adapter)
    mix = Mix.parse("rows:0.5+lora:2")
    weights = load_file(exported(bank, base, mix, torch.float32) / "model.safetensors")
    a, b = make_factors().values()
    query = make_weights()[QUERY].float() + 2 * 2.0 * b @ a
    torch.testing.assert_close(weights[QUERY], query, rtol=1e-5, atol=1e-5)
    change = weights[EMBEDDING] - make_weights()[EMBEDDING].float()
    assert change.any(dim=1).nonzero().tolist() == [[3]]
    moved = rows[EMBEDDING][3].float() - make_weights()[EMBEDDING][3].float()
    torch.testing.assert_close(change[3], 0.5 * moved, rtol=1e-5, atol=1e-5)


def test_companion_files_and_the_dtype_are_written(bank: Path, base: Path) -> None:
    (base / "tokenizer.json").write_text("{}")
    (base / "tokenizer_config.json").write_text("{}")
    (base / "generation_config.json").write_text('{"max_length": 3}')
    (base / "notes.py").write_text("")
    (base / "tokenizer_cache").mkdir()
    out = exported(bank, base, Mix.parse("math"), torch.float32)
    assert sorted(path.name for path in out.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"
    assert Checkpoint.open(out).tie_groups == Checkpoint.open(base).tie_groups


@pytest.mark.parametrize("key", ["dtype", None])
def test_the_dtype_replaces_what_the_configuration_states(tmp_path: Path, key: str | None) -> None:
    base = save_model(tmp_path / "base", make_weights(), dtype="bfloat16")
    config = json.loads((base / "config.json").read_text())
    del config["torch_dtype"]
    if key is None:
        del config["dtype"]
    (base / "config.json").write_text(json.dumps(config))
    bank = build_bank(base, {}, Forms(Scheme("dense")), tmp_path / "bank").path
    written = json.loads(
        (exported(bank, base, BASE_MIX, torch.float16) / "config.json").read_text()
    )
    assert written[key or "torch_dtype"] == "float16"


def test_requests_that_cannot_be_met_write_nothing(bank: Path, base: Path, math: Path) -> None:
    with pytest.raises(UnknownTaskError):
        exported(bank, base, Mix.parse("law"))
    with pytest.raises(InvalidMixError, match="no plane"):
        exported(bank, base, Mix((Term("math", 1.0, ("tall.math",)),)))
    with pytest.raises(BaseMismatchError):
        exported(bank, math, Mix.parse("math"))
    assert not (bank.parent / "exported").exists()
    exported(bank, base, BASE_MIX)
    with pytest.raises(BankExistsError):
        exported(bank, base, BASE_MIX)


@pytest.mark.parametrize("form", ["exact", "exact,int2", "exact,tall(mtl=2)"])
def test_an_archived_task_comes_back_in_its_own_bytes(
    tmp_path: Path, base: Path, code: Path, form: str
) -> None:
    model = {**MATH, QUERY: MATH[QUERY].clone(), DOWN: MATH[DOWN].float() + 1e-5}
    model[QUERY][0, :2] = torch.tensor([-0.0, 9.2e-41]).bfloat16()
    sources = {"odd": save_model(tmp_path / "odd", model), "code": code}
    bank = build_bank(base, sources, Forms.parse(form), tmp_path / "bank").path
    weights = load_file(exported(bank, base, Mix.parse("odd")) / "model.safetensors")
    for name, tensor in model.items():
        assert weights[name].dtype == tensor.dtype
        assert tensor_bytes(weights[name]) == tensor_bytes(tensor)
    wide = tmp_path / "wide"
    export_checkpoint(Bank.open(bank), Checkpoint.open(base), Mix.parse("odd"), wide, torch.float32)
    for name, tensor in load_file(wide / "model.safetensors").items():
        assert torch.equal(tensor, model[name].float())


def test_mixes_take_what_is_archived_unless_as_served(
    tmp_path: Path, base: Path, math: Path, code: Path
) -> None:
    sources = {"math": math, "code": code}
    path = build_bank(base, sources, Forms.parse("exact,int2"), tmp_path / "bank").path
    bank, start, mix = Bank.open(path), Checkpoint.open(base), Mix.parse("math:0.6+code:-0.3")
    export_checkpoint(bank, start, mix, tmp_path / "exact", torch.float32)
    weights = load_file(tmp_path / "exact" / "model.safetensors")
    for name in weights:
        reference = expected(name, 0.6, -0.3).float()
        torch.testing.assert_close(weights[name], reference, rtol=1e-6, atol=1e-6)
    export_checkpoint(bank, start, mix, tmp_path / "served", torch.float32, is_as_served=True)
    served = load_file(tmp_path / "served" / "model.safetensors")
    for name, tensor in make_weights().items():
        added = 0.6 * decode(bank.read("math", name)) - 0.3 * decode(bank.read("code", name))
        torch.testing.assert_close(served[name], tensor.float() + added, rtol=1e-6, atol=1e-6)
    assert not torch.equal(served[QUERY], weights[QUERY])
    export_checkpoint(bank, start, Mix.parse("math"), tmp_path / "one", is_as_served=True)
    one = load_file(tmp_path / "one" / "model.safetensors")[QUERY]
    before = make_weights()[QUERY].float()
    assert torch.equal(one, (before + decode(bank.read("math", QUERY))).bfloat16())
    assert not torch.equal(one, MATH[QUERY])


@pytest.mark.parametrize(
    "terms",
    [
        (Term("math", 0.5),),
        (Term("math", 1.0, (), ((0, 2.0),)),),
        (Term("math", 1.0, (), (), ((NORM, 0.0),)),),
    ],
)
def test_only_a_whole_task_is_given_back_as_it_was(
    tmp_path: Path, base: Path, terms: tuple[Term, ...]
) -> None:
    odd = {**MATH, DOWN: MATH[DOWN].float() + 1e-5}
    source = save_model(tmp_path / "odd", odd)
    path = build_bank(base, {"math": source}, Forms.parse("exact"), tmp_path / "bank").path
    weights = load_file(exported(path, base, Mix(terms)) / "model.safetensors")
    term = Mix(terms).terms[0]
    for name, before in make_weights().items():
        delta = odd[name].float() - before.float()
        merged = before.float().add(delta, alpha=term.coefficient_for(name))
        assert torch.equal(weights[name], merged.bfloat16())


def test_masked_mixes_are_exported(bank: Path, base: Path) -> None:
    opened = Bank.open(bank)
    masks = random_masks(opened, seed=3, without="norm")
    add_planes(bank, ("math", "code"), {"p": masks})
    mix = Mix((Term("math", 2.0, ("p",)), Term("code", -1.0, ("!p",))))
    weights = load_file(exported(bank, base, mix, torch.float32) / "model.safetensors")
    for name in weights:
        mask = masks.get(name, torch.zeros(weights[name].shape)).double()
        plain = make_weights()[name].double()
        reference = (
            plain
            + mask * (expected(name, 2.0, 0.0) - plain)
            + (1 - mask) * (expected(name, 0.0, -1.0) - plain)
        )
        torch.testing.assert_close(weights[name], reference.float(), rtol=1e-6, atol=1e-6)


def test_a_whole_archived_task_under_a_mask_is_masked(
    tmp_path: Path, base: Path, math: Path
) -> None:
    path = build_bank(base, {"math": math}, Forms.parse("exact"), tmp_path / "bank").path
    nothing = {QUERY: torch.zeros(20, 20, dtype=torch.bool)}
    add_planes(path, ("math",), {"none": nothing})
    weights = load_file(
        exported(path, base, Mix((Term("math", 1.0, ("none",)),))) / "model.safetensors"
    )
    for name, before in make_weights().items():
        assert torch.equal(weights[name], before)
