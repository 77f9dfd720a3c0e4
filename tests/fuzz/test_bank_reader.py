"""Damaged banks: opening one and reading everything raises BankFormatError and nothing else."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from taskmix_composer.bank import Bank
from taskmix_composer.bank.records import canonical, sha256
from taskmix_composer.build import add_task, build_bank
from taskmix_composer.errors import BankFormatError
from taskmix_composer.forms import Forms
from taskmix_composer.quant import archival, decode
from tests.unit.composer.models import make_factors, make_weights, save_adapter, save_model, tuned

SEED = 20_240_607
ODD_VALUES = [None, True, -1, 0, 10**400, 1e308, "", "../x", "\ud800", [], [[]], {}, {"": None}]
NUM_CASES = 200
ADDED_SCHEMES = ("exact", "rtvq", "tall(mtl=4)", "emr(mtl=2)", "sign(salient=0.2)", "sparse")
# bank.json, two tasks and an archive, the table, and for each scheme a task, three over a vector.
NUM_FILES = 1 + 3 + 1 + len(ADDED_SCHEMES) + 3


def read_everything(bank: Path) -> None:
    """Decode everything a bank holds."""
    opened, base = Bank.open(bank), make_weights()
    for task, entry in opened.entries.items():
        for tensor in entry.tensors:
            decode(opened.read(task, tensor), base[tensor])
        for tensor in entry.exact.tensors if entry.exact else ():
            archival.restore(base[tensor], opened.read_exact(task, tensor))
    for name, plane in opened.planes.items():
        for tensor in plane.content.tensors:
            decode(opened.read_plane(name, tensor))
    opened.read_gram()


def flip_bit(content: bytearray, source: random.Random) -> None:
    content[source.randrange(len(content))] ^= 1 << source.randrange(8)


def truncate(content: bytearray, source: random.Random) -> None:
    del content[source.randrange(len(content)) :]


def overwrite(content: bytearray, source: random.Random) -> None:
    start = source.randrange(len(content))
    end = min(len(content), start + source.randint(1, 64))
    replaced = bytes(content[start:end])
    while bytes(content[start:end]) == replaced:
        content[start:end] = source.randbytes(end - start)


def insert(content: bytearray, source: random.Random) -> None:
    start = source.randrange(len(content) + 1)
    content[start:start] = source.randbytes(source.randint(1, 64))


def replace_all(content: bytearray, source: random.Random) -> None:
    content[:] = source.randbytes(source.randrange(2 * len(content)))


DAMAGES: list[Callable[[bytearray, random.Random], None]] = [
    flip_bit,
    truncate,
    overwrite,
    insert,
    replace_all,
]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with deltas of every codec, shared vectors, archives, planes and a Gram table."""
    root = tmp_path_factory.mktemp("fuzz")
    weights = make_weights()
    base = save_model(root / "base", weights)
    changed = tuned(weights)
    changed["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].clone()
    changed["model.embed_tokens.weight"][5] += 1
    tasks = {
        "full": save_model(root / "full", changed),
        "lora": save_adapter(root / "lora", make_factors()),
    }
    path = root / "bank"
    build_bank(base, tasks, Forms.parse("exact,int3", group=8), path)
    for number, scheme in enumerate(ADDED_SCHEMES):
        source = save_model(root / f"more-{number}", tuned(weights, seed=10 + number))
        add_task(path, base, f"more-{number}", source, Forms.parse(scheme))
    read_everything(path)
    return path


@pytest.fixture
def copy(bank: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bank, tmp_path / "bank"))


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damaged_bytes_are_found(damage: Callable[..., None], copy: Path) -> None:
    source = random.Random(f"{SEED} {damage.__name__}")
    files = sorted(path for path in copy.rglob("*") if path.is_file())
    assert len(files) == NUM_FILES
    for case in range(NUM_CASES):
        file = files[case % len(files)]
        intact = file.read_bytes()
        content = bytearray(intact)
        damage(content, source)
        file.write_bytes(content)
        with pytest.raises(BankFormatError):
            read_everything(copy)
        file.write_bytes(intact)
    read_everything(copy)


def set_somewhere(value: Any, source: random.Random) -> None:
    """Replace one value somewhere within a JSON object or list."""
    key = source.choice(sorted(value) if isinstance(value, dict) else range(len(value)))
    if isinstance(value[key], dict | list) and value[key] and source.random() < 0.9:
        set_somewhere(value[key], source)
    else:
        value[key] = source.choice(ODD_VALUES)


def test_well_signed_manifests_of_odd_content_load_or_are_refused(copy: Path) -> None:
    source = random.Random(SEED)
    path = copy / "bank.json"
    intact = json.loads(path.read_bytes())
    del intact["digest"]
    num_refused = 0
    for _ in range(NUM_CASES):
        fields = json.loads(json.dumps(intact))
        set_somewhere(fields, source)
        path.write_text(canonical({**fields, "digest": sha256(canonical(fields))}) + "\n")
        try:
            read_everything(copy)
        except BankFormatError:
            num_refused += 1
    assert num_refused > NUM_CASES // 2


def test_every_byte_of_a_shard_is_covered(copy: Path) -> None:
    shard = next((copy / "shards").glob("lora-*"))
    intact = shard.read_bytes()
    for position in range(0, len(intact), 5):
        content = bytearray(intact)
        content[position] ^= 0x10
        shard.write_bytes(content)
        with pytest.raises(BankFormatError):
            read_everything(copy)


def test_missing_renamed_and_exchanged_files_are_found(copy: Path) -> None:
    shards = sorted((copy / "shards").iterdir())
    for file in [copy / "bank.json", *shards]:
        moved = file.rename(file.with_name("moved"))
        with pytest.raises(BankFormatError):
            read_everything(copy)
        file.mkdir()
        with pytest.raises(BankFormatError):
            read_everything(copy)
        file.rmdir()
        moved.rename(file)
    first, second, *_ = shards
    spare = copy / "spare"
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    with pytest.raises(BankFormatError):
        read_everything(copy)
