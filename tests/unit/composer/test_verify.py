from pathlib import Path

import pytest
import torch

from taskmix_composer.build import add_task, build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.errors import (
    BankFormatError,
    BaseMismatchError,
    CheckpointError,
    UnknownTaskError,
)
from taskmix_composer.forms import Forms
from taskmix_composer.quant import decode
from taskmix_composer.verify import verify_bank
from tests.unit.composer.models import EMBEDDING, NORM, QUERY, make_weights, save_model, tuned


def test_an_intact_bank_is_counted(bank: Path, base: Path) -> None:
    report = verify_bank(bank, base)
    num_parameters = sum(tensor.numel() for tensor in make_weights().values())
    assert (report.num_entries, report.num_tensors) == (2, 8)
    assert report.num_bytes == 2 * 4 * num_parameters
    assert report.errors == ()


def test_errors_are_relative_to_the_original(bank: Path, base: Path, math: Path) -> None:
    changed = add_task(bank, base, "coarse", math, Forms(Scheme.of("int2", group=16)))
    report = verify_bank(bank, base, {"math": math, "coarse": math})
    dense, coarse = report.errors
    assert dense.relative_l2 == 0.0
    assert set(dense.by_tensor.values()) == {0.0}
    original = tuned(make_weights(), seed=1)
    lost = total = 0.0
    for name, tensor in make_weights().items():
        delta = original[name].double() - tensor.double()
        difference = decode(changed.read("coarse", name)).double() - delta
        lost, total = lost + float((difference**2).sum()), total + float((delta**2).sum())
        measured = coarse.by_tensor[name]
        assert measured == pytest.approx(float(difference.norm() / delta.norm()), rel=1e-5)
    assert coarse.relative_l2 == pytest.approx((lost / total) ** 0.5, rel=1e-5)
    assert 0.05 < coarse.relative_l2 < 1.0


def test_another_original_shows(tmp_path: Path, base: Path) -> None:
    weights = make_weights()
    one = save_model(tmp_path / "one", {**weights, QUERY: weights[QUERY] + 1})
    other = save_model(tmp_path / "two", {**weights, NORM: weights[NORM] + 1})
    bank = build_bank(base, {"one": one}, Forms(Scheme("dense")), tmp_path / "b").path
    (error,) = verify_bank(bank, base, {"one": other}).errors
    assert error.by_tensor == {QUERY: float("inf"), NORM: 1.0}
    assert error.relative_l2 > 1.0


def test_adapters_are_compared_with_their_factors(
    tmp_path: Path, base: Path, adapter: Path
) -> None:
    bank = build_bank(base, {"lora": adapter}, Forms(Scheme("int4")), tmp_path / "b").path
    (error,) = verify_bank(bank, base, {"lora": adapter}).errors
    assert error.by_tensor.keys() == {QUERY}
    assert error.relative_l2 < 1e-6


def test_damage_and_mismatch_are_raised(bank: Path, base: Path, math: Path) -> None:
    with pytest.raises(BaseMismatchError):
        verify_bank(bank, math)
    with pytest.raises(CheckpointError, match="needs the base model too"):
        verify_bank(bank, None, {"math": math})
    with pytest.raises(UnknownTaskError):
        verify_bank(bank, base, {"law": math})
    shard = next((bank / "shards").glob("math-*"))
    content = bytearray(shard.read_bytes())
    content[-3] ^= 16
    shard.write_bytes(content)
    with pytest.raises(BankFormatError, match=shard.name):
        verify_bank(bank)


def test_row_sparse_deltas_are_compared_whole(tmp_path: Path, base: Path) -> None:
    weights = make_weights()
    changed = weights[EMBEDDING].clone()
    changed[4] += torch.arange(20).bfloat16()
    source = save_model(tmp_path / "m", {**weights, EMBEDDING: changed})
    bank = build_bank(base, {"t": source}, Forms(Scheme("int8")), tmp_path / "b").path
    (error,) = verify_bank(bank, base, {"t": source}).errors
    assert 0.0 < error.relative_l2 < 0.01
