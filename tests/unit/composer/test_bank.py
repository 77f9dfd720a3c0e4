import json
import os
from pathlib import Path

import pytest
import torch

from taskmix_composer.bank import Bank, reader
from taskmix_composer.bank.directory import new_directory, write_locked
from taskmix_composer.bank.opening import read_manifest
from taskmix_composer.bank.records import canonical, sha256
from taskmix_composer.build import add_task, build_bank, remove_task
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.errors import (
    BankBusyError,
    BankExistsError,
    BankFormatError,
    BaseMismatchError,
    InvalidMixError,
    UnknownTaskError,
)
from taskmix_composer.forms import Forms
from taskmix_composer.identity import DigestCache
from taskmix_composer.mix import Mix, Term
from taskmix_composer.quant import decode
from tests.unit.composer.models import (
    EMBEDDING,
    HEAD,
    NORM,
    QUERY,
    make_weights,
    save_model,
    tuned,
)


def shards(bank: Path) -> list[Path]:
    """The tasks' shards, without the table of inner products."""
    return sorted(path for path in (bank / "shards").iterdir() if path.name[:5] != "gram-")


def rewrite(bank: Path, change: object) -> None:
    """Apply `change` to bank.json's fields and make its digest right again."""
    path = bank / "bank.json"
    fields = json.loads(path.read_text())
    del fields["digest"]
    change(fields)
    fields["digest"] = sha256(canonical(fields))
    path.write_text(canonical(fields) + "\n")


def test_an_open_bank_reads_what_was_built(bank: Path) -> None:
    opened = Bank.open(bank)
    base, math = make_weights(), tuned(make_weights(), seed=1)
    assert sorted(opened.entries) == ["code", "math"]
    assert opened.entry("math").scheme == "dense"
    assert opened.entry("math").provenance.source == "math-model"
    assert opened.entry("math").provenance.dtype == "BF16"
    assert opened.base.num_parameters == sum(tensor.numel() for tensor in base.values())
    assert opened.base.tie_groups == ((EMBEDDING, HEAD),)
    assert opened.entry_digests["math"] == opened.entry("math").digest
    assert len(opened.revision) == 16
    for name, tensor in base.items():
        delta = decode(opened.read("math", name))
        assert torch.equal(delta, math[name].float() - tensor.float())


def test_unknown_tasks_are_named(bank: Path) -> None:
    with pytest.raises(UnknownTaskError, match="no task 'law'; it has code, math"):
        Bank.open(bank).entry("law")
    remove_task(bank, "math")
    remove_task(bank, "code")
    with pytest.raises(UnknownTaskError, match="it has none"):
        Bank.open(bank).read("math", QUERY)


def test_builds_are_deterministic_and_the_manifest_is_golden(
    bank: Path, base: Path, math: Path, code: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    build_bank(base, {"code": code, "math": math}, Forms(Scheme("dense")), again)
    assert (again / "bank.json").read_bytes() == (bank / "bank.json").read_bytes()
    for one, other in zip(shards(bank), shards(again), strict=True):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes()
    fields = json.loads((bank / "bank.json").read_text())
    assert fields["format"] == "taskmix-bank"
    assert fields["version"] == 2
    assert fields["planes"] == {}
    assert fields["blocks"][1] == {"tensor": QUERY, "layer": 0, "role": "self_attn.q_proj"}
    assert fields["blocks"][3] == {"tensor": NORM, "layer": None, "role": "model.norm"}
    assert fields["entries"]["math"]["tensors"][NORM]["parts"] == {
        "values": {"dtype": "F32", "shape": [20]}
    }
    assert fields["entries"]["math"]["shard"]["file"] == shards(bank)[1].name
    assert str(bank.parent) not in (bank / "bank.json").read_text()


def test_the_name_of_a_task_does_not_change_its_digest(
    bank: Path, base: Path, math: Path, tmp_path: Path
) -> None:
    renamed = build_bank(base, {"renamed": math}, Forms(Scheme("dense")), tmp_path / "other")
    opened = Bank.open(bank)
    assert renamed.entry("renamed").digest == opened.entry("math").digest
    assert renamed.entry("renamed").digest != opened.entry("code").digest
    assert renamed.revision != opened.revision


def test_an_open_bank_outlives_changes_of_the_directory(bank: Path, base: Path, math: Path) -> None:
    opened = Bank.open(bank)
    before = decode(Bank.open(bank).read("math", QUERY)).clone()
    remove_task(bank, "math")
    add_task(bank, base, "third", math)
    assert [path.name.split("-")[0] for path in shards(bank)] == ["code", "third"]
    assert torch.equal(decode(opened.read("math", QUERY)), before)
    assert sorted(opened.entries) == ["code", "math"]
    assert sorted(Bank.open(bank).entries) == ["code", "third"]


def test_a_bank_replaced_while_it_is_opened_is_read_again(
    bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = read_manifest(bank)
    remove_task(bank, "math")
    manifests = iter([stale, read_manifest(bank)])
    monkeypatch.setattr(reader, "read_manifest", lambda path: next(manifests))
    assert list(Bank.open(bank).entries) == ["code"]


def test_changed_bytes_are_found_and_named(bank: Path) -> None:
    file = shards(bank)[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    opened = Bank.open(bank)
    with pytest.raises(BankFormatError) as caught:
        [opened.read("math", tensor) for tensor in opened.entry("math").tensors]
    assert caught.value.path == file
    assert caught.value.tensor in opened.entry("math").tensors
    assert str(file) in str(caught.value)
    assert "add it again" in str(caught.value)
    decode(opened.read("code", QUERY))


def test_damaged_shards_do_not_open(bank: Path) -> None:
    file = shards(bank)[0]
    content = file.read_bytes()
    header_flip = bytearray(content)
    header_flip[20] ^= 1
    other_header = content.replace(b'"pt"', b'"np"')
    longer = content + b"\0"
    for damaged in (content[:-1], content[:5], b"", longer, bytes(header_flip), other_header):
        file.write_bytes(damaged)
        with pytest.raises(BankFormatError, match=file.name):
            Bank.open(bank)
    file.write_bytes(shards(bank)[1].read_bytes())
    with pytest.raises(BankFormatError, match="do not match their digest"):
        Bank.open(bank).read("code", QUERY)
    file.unlink()
    with pytest.raises(BankFormatError, match="cannot be read: No such file"):
        Bank.open(bank)


def test_a_shard_of_another_length_is_refused(bank: Path) -> None:
    rewrite(bank, lambda fields: fields["entries"]["math"]["shard"].update(bytes=12))
    with pytest.raises(BankFormatError, match="expected 12"):
        Bank.open(bank)


@pytest.mark.parametrize(
    ("version", "message"),
    [(3, "written by a newer taskmix"), (1, "unknown"), ("1", "unknown"), (None, "unknown")],
)
def test_other_versions_are_refused(bank: Path, version: object, message: str) -> None:
    rewrite(bank, lambda fields: fields.update(version=version))
    with pytest.raises(BankFormatError, match=message) as caught:
        Bank.open(bank)
    assert caught.value.path == bank / "bank.json"


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.update(extra=1),
        lambda fields: fields.pop("planes"),
        lambda fields: fields.pop("blocks"),
        lambda fields: fields.pop("base"),
        lambda fields: fields.update(entries=[]),
        lambda fields: fields["entries"].update(Bad=fields["entries"]["math"]),
        lambda fields: fields["entries"]["math"].update(scheme=3),
        lambda fields: fields["entries"]["math"].update(digest="0"),
        lambda fields: fields["entries"]["math"]["shard"].update(file="../../etc/passwd"),
        lambda fields: fields["entries"]["math"]["shard"].update(bytes=True),
        lambda fields: fields["entries"]["math"]["shard"].update(bytes=-1),
        lambda fields: fields["entries"]["math"]["tensors"][QUERY].update(shape=3),
        lambda fields: fields["entries"]["math"]["tensors"][QUERY].update(shape=[20, -20]),
        lambda fields: fields["entries"]["math"]["tensors"][QUERY].update(params={"x": "1"}),
        lambda fields: fields["base"]["tensors"][QUERY].update(extra=1),
        lambda fields: fields["base"]["tensors"][QUERY].update(dtype="F5"),
        lambda fields: fields["base"].update(num_parameters=1),
        lambda fields: fields["entries"]["math"]["tensors"][QUERY].update(params={"x": 10**400}),
    ],
)
def test_a_manifest_that_is_not_as_written_is_refused(bank: Path, change: object) -> None:
    rewrite(bank, change)
    with pytest.raises(BankFormatError, match=r"bank\.json"):
        Bank.open(bank)


def test_a_delta_that_does_not_fit_the_base_is_refused(bank: Path) -> None:
    rewrite(bank, lambda fields: fields["base"]["tensors"][QUERY].update(shape=[20, 21]))
    with pytest.raises(BankFormatError, match="does not fit the base"):
        Bank.open(bank)


def test_a_codec_that_is_unknown_is_refused_when_read(bank: Path) -> None:
    manifest = Bank.open(bank).manifest
    entry = manifest.entries["math"]
    object.__setattr__(entry.tensors[QUERY], "codec", "future")
    with pytest.raises(BankFormatError, match=f"{QUERY}: codec 'future' is unknown"):
        Bank(bank, manifest, Bank.open(bank)._shards).read("math", QUERY)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff", b'{"format":"other"}', b"[" * 99999]
)
def test_files_that_are_not_manifests_are_refused(bank: Path, content: bytes) -> None:
    (bank / "bank.json").write_bytes(content)
    with pytest.raises(BankFormatError, match=r"bank\.json"):
        Bank.open(bank)


def test_numbers_that_are_not_json_are_refused(bank: Path) -> None:
    path = bank / "bank.json"
    path.write_text(path.read_text().replace('"rms_norm_eps":1e-05', '"rms_norm_eps":NaN'))
    with pytest.raises(BankFormatError, match="damaged"):
        Bank.open(bank)


def test_a_missing_or_huge_manifest_is_refused(bank: Path) -> None:
    with pytest.raises(BankFormatError, match="give a directory that `bank build` made"):
        Bank.open(bank / "nowhere")
    os.truncate(bank / "bank.json", (1 << 30) + 1)
    with pytest.raises(BankFormatError, match="larger than 1 GiB"):
        Bank.open(bank)


def test_the_right_base_passes_with_and_without_a_cache(
    bank: Path, base: Path, tmp_path: Path
) -> None:
    opened = Bank.open(bank)
    opened.check_base(Checkpoint.open(base))
    for _ in range(2):
        opened.check_base(Checkpoint.open(base), DigestCache(tmp_path / "cache.json"))


def test_other_bases_are_refused_by_name(bank: Path, tmp_path: Path) -> None:
    weights = make_weights()
    others = {
        "config.json differs in rms_norm_eps": ({**weights}, {"rms_norm_eps": 1e-6}),
        f"only one of them has {NORM}": (
            {name: tensor for name, tensor in weights.items() if name != NORM},
            {},
        ),
        "only one of them has extra": ({**weights, "extra": torch.ones(2)}, {}),
        f"{NORM} is F32 \\[20\\], expected BF16": ({**weights, NORM: weights[NORM].float()}, {}),
        f"{NORM} is BF16 \\[21\\]": ({**weights, NORM: torch.ones(21).bfloat16()}, {}),
        f"the values of {QUERY} differ": ({**weights, QUERY: weights[QUERY] + 1}, {}),
    }
    for number, (message, (tensors, config)) in enumerate(others.items()):
        other = Checkpoint.open(save_model(tmp_path / f"other-{number}", tensors, **config))
        with pytest.raises(BaseMismatchError, match=message):
            Bank.open(bank).check_base(other)


def test_mixes_are_checked_against_the_bank(bank: Path) -> None:
    opened = Bank.open(bank)
    opened.check_mix(Mix((Term("math", 0.5, (), ((1, 2.0),), ((QUERY, 1.0),)),)))
    opened.check_mix(Mix())
    with pytest.raises(UnknownTaskError, match="law"):
        opened.check_mix(Mix.parse("math+law"))
    with pytest.raises(InvalidMixError, match=r"no plane 'tall\.a'"):
        opened.check_mix(Mix((Term("math", 1.0, ("!tall.a",)),)))
    with pytest.raises(InvalidMixError, match="no layer 7"):
        opened.check_mix(Mix((Term("math", 1.0, (), ((7, 2.0),)),)))
    with pytest.raises(InvalidMixError, match=HEAD):
        opened.check_mix(Mix((Term("math", 1.0, (), (), ((HEAD, 2.0),)),)))


def test_a_failed_write_leaves_nothing_and_an_existing_path_is_kept(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with pytest.raises(IsADirectoryError), new_directory(out) as directory:
        directory.write_text("x")
    assert list((tmp_path / "deep").iterdir()) == []
    with new_directory(out) as directory:
        (directory / "file").write_text("x")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    with pytest.raises(BankExistsError, match="exists already"), new_directory(out):
        pass
    assert (out / "file").read_text() == "x"


def test_two_writers_do_not_meet(bank: Path) -> None:
    with write_locked(bank):
        with pytest.raises(BankBusyError, match="another command is changing"):
            remove_task(bank, "math")
        assert sorted(Bank.open(bank).entries) == ["code", "math"]
    remove_task(bank, "math")


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_what_is_not_a_directory_cannot_be_changed(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BankFormatError, match=f"{name}: cannot be changed"):
        remove_task(tmp_path / name, "math")
