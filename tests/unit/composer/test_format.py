"""What version 2 of the format holds beyond plain entries: pinned, and refused where it is odd."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from taskmix_composer.bank import Bank, EncodedDelta
from taskmix_composer.bank.opening import read_manifest
from taskmix_composer.bank.records import canonical, sha256
from taskmix_composer.build import add_task, build_bank, remove_task
from taskmix_composer.errors import BankFormatError
from taskmix_composer.forms import Forms
from taskmix_composer.publish import MergeRequest, merge_tasks
from taskmix_composer.quant import archival, decode
from tests.unit.composer.models import EMBEDDING, QUERY, make_weights, save_model

Change = Callable[[dict[str, Any]], object]


def integers(seed: int) -> dict[str, torch.Tensor]:
    """The base moved by small powers of two: sums of these are exact on any machine."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in make_weights().items():
        steps = torch.randint(-8, 9, tensor.shape, generator=generator)
        moved[name] = tensor.float() + steps * 2.0**-10
    return moved


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks over a shared vector with archives, a lone one, planes and a table."""
    root = tmp_path_factory.mktemp("original")
    base = save_model(root / "base", make_weights())
    sources = {
        task: save_model(root / f"{task}-model", integers(seed))
        for seed, task in enumerate(("code", "math"))
    }
    path = build_bank(base, sources, Forms.parse("exact,tall(mtl=4)"), root / "full").path
    alone = save_model(root / "alone", integers(7))
    add_task(path, base, "alone", alone, Forms.parse("int4"))
    request = MergeRequest("magmax", ("code", "math"), {"lambda": 1.0}, "p", is_planes=True)
    return merge_tasks(path, base, request)[0].path


@pytest.fixture
def full(tmp_path: Path, original: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "full"))


def rewrite(bank: Path, change: Change) -> None:
    """Apply `change` to bank.json's fields and make its digest right again."""
    path = bank / "bank.json"
    fields = json.loads(path.read_text())
    del fields["digest"]
    change(fields)
    fields["digest"] = sha256(canonical(fields))
    path.write_text(canonical(fields) + "\n")


def shared_of(fields: dict[str, Any]) -> dict[str, Any]:
    (shared,) = fields["shared"].values()
    return shared


def test_the_manifest_is_golden(full: Path) -> None:
    fields = json.loads((full / "bank.json").read_text())
    assert set(fields) == {
        "base",
        "blocks",
        "digest",
        "entries",
        "format",
        "gram",
        "planes",
        "shared",
        "version",
    }
    entry = fields["entries"]["math"]
    assert set(entry) == {
        "archive",
        "digest",
        "provenance",
        "scheme",
        "shard",
        "shared",
        "tensors",
    }
    assert entry["scheme"] == "tall(mtl=4,group=64,lambda=0.4)"
    assert entry["shared"] in fields["shared"]
    assert set(entry["archive"]) == {"shard", "tensors"}
    assert fields["entries"]["alone"]["archive"] is None
    assert fields["entries"]["alone"]["shared"] == ""
    shared = fields["shared"][entry["shared"]]
    assert set(shared) == {"derivation", "scheme", "shard", "tensors"}
    assert shared["scheme"] == "int4(group=64)"
    assert shared["derivation"] == {
        "method": "tall",
        "params": {"group": 64, "lambda": 0.4, "mtl": 4},
        "bound": {
            task: fields["entries"][task]["provenance"]["digest"] for task in ("code", "math")
        },
        "from_bank": False,
    }
    assert shared["shard"]["file"] == f"_shared-{entry['shared'][:16]}.safetensors"
    plane = fields["planes"]["p.math"]
    assert set(plane) == {"density", "derivation", "shard", "tensors"}
    assert plane["tensors"][QUERY]["parts"]["mask"]["shape"] == [20, 3]
    assert fields["gram"]["tasks"] == ["alone", "code", "math"]
    assert set(fields["gram"]) == {"digest", "shard", "tasks"}


def test_the_bytes_of_a_small_tall_bank_are_golden(full: Path) -> None:
    opened = Bank.open(full)
    (shared,) = opened.manifest.shared
    digests = {task: entry.digest[:16] for task, entry in opened.entries.items()}
    planes = {plane: digest[:16] for plane, digest in opened.plane_digests.items()}
    assert shared[:16] == "dc0bdee8b1391cf8"
    assert digests == {
        "alone": "efae5ea38eb30569",
        "code": "f8acb4e1ca92081a",
        "math": "b841dbf29c3710ca",
    }
    assert planes == {"p.code": "487a603fe3d81c71", "p.math": "b4e6ec2caacd2ff2"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.update(shared={}), "lacks its shared vector"),
        (
            lambda fields: fields.update(shared={"0" * 64: shared_of(fields)}),
            "lacks its shared vector",
        ),
        (
            lambda fields: fields["shared"].update({"0" * 64: shared_of(fields)}),
            "another content than its name",
        ),
        (lambda fields: fields["gram"].update(tasks=["math"]), "is of other tasks"),
        (lambda fields: fields["gram"].update(tasks=["math", "code", "alone"]), "of other tasks"),
        (lambda fields: fields["gram"].update(tasks=None), "damaged"),
        (lambda fields: fields["gram"].update(digest="0"), "its own digest"),
        (lambda fields: fields["planes"].update(Bad=fields["planes"]["p.math"]), "damaged"),
        (lambda fields: fields["planes"]["p.math"].update(density=True), "damaged"),
        (lambda fields: fields["planes"]["p.math"]["derivation"].update(from_bank=1), "damaged"),
        (lambda fields: fields["planes"]["p.math"]["derivation"].pop("bound"), "damaged"),
        (
            lambda fields: fields["planes"]["p.math"]["derivation"]["params"].update(x=None),
            "damaged",
        ),
        (
            lambda fields: fields["planes"]["p.math"]["derivation"]["bound"].update(math=3),
            "damaged",
        ),
        (lambda fields: shared_of(fields).update(scheme=None), "damaged"),
        (lambda fields: fields["entries"]["math"].update(archive={}), "damaged"),
        (lambda fields: fields["entries"]["math"].update(shared=None), "damaged"),
        (
            lambda fields: fields["entries"]["alone"]["tensors"][QUERY]["parts"]["codes"].update(
                dtype="F5"
            ),
            "damaged",
        ),
        (
            lambda fields: fields["entries"]["math"]["archive"]["tensors"][QUERY].update(shape=[2]),
            "does not fit the base",
        ),
        (
            lambda fields: fields["planes"]["p.math"]["tensors"].update(
                other=fields["planes"]["p.math"]["tensors"][QUERY]
            ),
            "does not fit the base at other",
        ),
    ],
)
def test_records_that_do_not_fit_one_another_are_refused(
    full: Path, change: Change, message: str
) -> None:
    rewrite(full, change)
    with pytest.raises(BankFormatError, match=message):
        Bank.open(full)


def coded_part(fields: dict[str, Any], task: str, tensor: str) -> tuple[dict[str, Any], str]:
    """The delta of a task and the name of its part of symbols."""
    delta = fields["entries"][task]["tensors"][tensor]
    return delta, "mask" if "mask" in delta["parts"] else "codes"


@pytest.mark.parametrize(
    "params", [{}, {"bits": 5}, {"bits": 0}, {"bits": -1}, {"bits": 3}, {"bits": 1e300}]
)
def test_coded_parts_with_other_parameters_are_refused(
    tmp_path: Path, params: dict[str, float]
) -> None:
    path = entropy_coded(tmp_path)

    def change(fields: dict[str, Any]) -> None:
        entry = fields["entries"]["t"]
        delta = entry["tensors"][QUERY]
        assert "coded" in delta["parts"]["codes"]
        delta["params"] = {**{k: v for k, v in delta["params"].items() if k != "bits"}, **params}
        relabel(path, fields, entry)

    rewrite(path, change)
    opened = Bank.open(path)
    with pytest.raises(BankFormatError, match=QUERY):
        opened.read("t", QUERY)


@pytest.mark.parametrize("shape", [[20], [20, 3], [20, 0], [1 << 40, 12], [20, 1 << 62]])
def test_coded_parts_of_another_size_are_refused(tmp_path: Path, shape: list[int]) -> None:
    path = entropy_coded(tmp_path)

    def change(fields: dict[str, Any]) -> None:
        entry = fields["entries"]["t"]
        entry["tensors"][QUERY]["parts"]["codes"]["shape"] = shape
        relabel(path, fields, entry)

    rewrite(path, change)
    opened = Bank.open(path)
    with pytest.raises(BankFormatError, match=QUERY):
        opened.read("t", QUERY)


def entropy_coded(root: Path) -> Path:
    """A bank of one int4 task whose codes are mostly zeros."""
    weights = {QUERY: torch.zeros(64, 64)}
    model = {QUERY: torch.zeros(64, 64)}
    model[QUERY][:, 0] = 1.0
    base = save_model(root / "plain", weights, torch_dtype="float32")
    source = save_model(root / "moved", model, torch_dtype="float32")
    return build_bank(base, {"t": source}, Forms.parse("int4"), root / "coded").path


def relabel(path: Path, fields: dict[str, Any], entry: dict[str, Any]) -> None:
    """Give an entry the digest of its changed tensors, and its shard the name that follows."""
    old = entry["shard"]["file"]
    entry["digest"] = sha256(canonical(entry["tensors"]))
    entry["shard"]["file"] = f"t-{entry['digest'][:16]}.safetensors"
    (path / "shards" / old).rename(path / "shards" / entry["shard"]["file"])


@pytest.mark.parametrize("stream", ["escapes", "levels", "steps"])
def test_exact_streams_are_of_one_axis_and_all_there(stream: str) -> None:
    parts = {name: torch.zeros(4, dtype=torch.uint8) for name in ("escapes", "levels", "steps")}
    EncodedDelta("exact", (2, 3), {}, parts)
    without = {name: part for name, part in parts.items() if name != stream}
    for damaged in (without, {**parts, stream: torch.zeros(2, 2, dtype=torch.uint8)}):
        with pytest.raises(BankFormatError, match="streams of an exact tensor are malformed"):
            EncodedDelta("exact", (2, 3), {}, damaged)


def test_a_symbol_of_too_many_bits_is_refused(tmp_path: Path) -> None:
    path = entropy_coded(tmp_path)

    def change(fields: dict[str, Any]) -> None:
        entry = fields["entries"]["t"]
        delta = entry["tensors"][QUERY]
        delta["params"]["bits"] = 2
        delta["parts"]["codes"]["shape"] = [64, 16]
        relabel(path, fields, entry)

    rewrite(path, change)
    with pytest.raises(BankFormatError, match="codes of more than 2 bits"):
        Bank.open(path).read("t", QUERY)


def test_planes_and_archives_are_found_damaged(full: Path, base: Path) -> None:
    for name, read in {
        "p.math": lambda bank: bank.read_plane("p.math", EMBEDDING),
        "_shared": lambda bank: bank.read("math", EMBEDDING),
    }.items():
        file = next((full / "shards").glob(f"{name}-*"))
        content = file.read_bytes()
        for position in range(len(content) - 40, len(content), 7):
            damaged = bytearray(content)
            damaged[position] ^= 1
            file.write_bytes(damaged)
            opened = Bank.open(full)
            with pytest.raises(BankFormatError, match=file.name):
                [read_all(opened, tensor) for tensor in opened.base.tensors]
        file.write_bytes(content)
        read(Bank.open(full))


def read_all(bank: Bank, tensor: str) -> None:
    """Read one tensor of everything that has it."""
    before = make_weights()[tensor]
    for plane in bank.planes:
        bank.read_plane(plane, tensor)
    for task, entry in bank.entries.items():
        if tensor in entry.tensors:
            decode(bank.read(task, tensor))
        if entry.exact is not None and tensor in entry.exact.tensors:
            archival.restore(before, bank.read_exact(task, tensor))


def test_a_manifest_reads_as_it_was_written(full: Path) -> None:
    manifest = read_manifest(full)
    assert manifest.to_bytes() == (full / "bank.json").read_bytes()
    assert manifest.digest == json.loads((full / "bank.json").read_text())["digest"]
    remove_task(full, "math")
    after = read_manifest(full)
    assert after.digest != manifest.digest
    assert after.base == manifest.base
