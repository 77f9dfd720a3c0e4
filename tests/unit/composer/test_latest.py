"""A bank directory that is asked again: read anew when its files have changed, and only then."""

import shutil
from pathlib import Path

import pytest

from taskmix_composer.bank import Bank
from taskmix_composer.bank.latest import LatestBank
from taskmix_composer.build import add_task, build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.errors import BankFormatError, BaseMismatchError
from taskmix_composer.forms import Forms
from tests.unit.composer.models import make_weights, save_model, tuned

DENSE = Forms(Scheme("dense"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save_model(tmp_path / "base", make_weights())


@pytest.fixture
def bank(base: Path, tmp_path: Path) -> Path:
    source = save_model(tmp_path / "one", tuned(make_weights(), seed=1))
    return build_bank(base, {"one": source}, DENSE, tmp_path / "bank").path


def test_an_unchanged_directory_is_read_once(bank: Path) -> None:
    latest = LatestBank(Bank.open(bank))
    assert latest.open() is latest.open() is latest.seen


def test_a_task_that_was_added_is_seen(base: Path, bank: Path, tmp_path: Path) -> None:
    latest = LatestBank(Bank.open(bank))
    before = latest.seen
    add_task(bank, base, "two", save_model(tmp_path / "two", tuned(make_weights(), seed=2)), DENSE)
    assert latest.seen is before
    assert set(latest.open().entries) == {"one", "two"}
    assert latest.open() is latest.seen


def test_a_shard_that_was_restored_from_a_copy_is_read(bank: Path, tmp_path: Path) -> None:
    (shard,) = (bank / "shards").glob("one-*")
    copy = shutil.copy(shard, tmp_path / "copy")
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([shard.read_bytes()[-1] ^ 1]))
    latest = LatestBank(Bank.open(bank))
    with pytest.raises(BankFormatError, match="restore the bank from a copy"):
        read_all(latest)
    Path(copy).replace(shard)
    read_all(latest)


def read_all(latest: LatestBank) -> None:
    bank = latest.open()
    for tensor in bank.entry("one").tensors:
        bank.read("one", tensor)


def test_a_bank_of_another_base_is_refused_until_it_is_gone(bank: Path, tmp_path: Path) -> None:
    latest = LatestBank(Bank.open(bank))
    weights = tuned(make_weights(), seed=5)
    other = save_model(tmp_path / "other", weights)
    source = save_model(tmp_path / "tuned", tuned(weights, seed=6))
    bank.rename(tmp_path / "kept")
    build_bank(other, {"one": source}, DENSE, bank)
    for _ in range(2):
        with pytest.raises(BaseMismatchError, match="bank of another base"):
            latest.open()
    shutil.rmtree(bank)
    (tmp_path / "kept").rename(bank)
    assert latest.open().revision == latest.seen.revision


def test_a_directory_that_is_gone_cannot_be_read(bank: Path) -> None:
    latest = LatestBank(Bank.open(bank))
    shutil.rmtree(bank)
    with pytest.raises(BankFormatError, match="cannot be read"):
        latest.open()
