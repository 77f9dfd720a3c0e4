"""Entries of every scheme and planes over them, in one batch, answer as the merged checkpoint.

The base is bfloat16, so that exact entries are coded as steps, and is served in float32. The same
bank is served by the compiled kernel, and by torch without a cache of dense forms, with one that
holds a few of them, and with one that holds them all.
"""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from taskmix_composer.bank import Bank
from taskmix_composer.build import add_task, build_bank, recode_bank
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Forms
from taskmix_composer.mix import BASE_MIX, Mix
from taskmix_server.engine.base import DeltaMemory
from tests.support.finetunes import change_rows, make_adapter
from tests.support.inprocess import InProcessEngine
from tests.support.parity import Oracle, prompt_of
from tests.support.planes import add_planes, random_masks
from tests.support.tiny import TinyModel, make_base, make_finetune

pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.timeout(300)]

ALONE = {
    "dense": "dense",
    "int4": "int4(group=32)",
    "sign": "sign(salient=0.05)",
    "sparse": "sparse(density=0.2)",
    "lowrank": "lowrank(rank=8)",
}
OVER_SHARED = {"rtvq": "rtvq", "tall": "tall(mtl=4)", "emr": "emr(mtl=4)"}
# What multiplies, and the bytes for dense forms.
CASES = {
    "native": ("native", 2**28),
    "torch-uncached": ("torch", 0),
    "torch-partly-cached": ("torch", 300_000),
    "torch": ("torch", 2**28),
}


def masked(*terms: tuple[str, float, list[str]]) -> Mix:
    """A mix of (task, coefficient, masks)."""
    keys = ("task", "coefficient", "masks")
    form = [dict(zip(keys, term, strict=True)) for term in terms]
    return Mix.parse(json.dumps({"terms": form}))


MIXES = [
    BASE_MIX,
    Mix.parse("int4:0.7+dense:0.3"),
    Mix.parse("rtvq-a:0.6+rtvq-b:-0.4+sign:0.5"),
    Mix.parse("tall-a:0.5+tall-b:0.5+emr-a:0.3"),
    Mix.parse("exact+adapter:1.5"),
    Mix.parse("lowrank:0.8+sparse:0.5+rows:0.7"),
    Mix.parse(
        "+".join(
            f"{task}:0.2"
            for task in ("exact", "adapter", "rows", *ALONE, *(f"{s}-a" for s in OVER_SHARED))
        )
    ),
    masked(("int4", 1.2, ["and-x", "and-y"])),
    masked(("int4", 0.9, ["and-x"]), ("int4", -0.5, ["!and-y"]), ("int4", 0.3, [])),
    masked(("tall-a", 0.7, ["set"]), ("lowrank", 0.9, ["!set"]), ("exact", 0.6, ["set"])),
    masked(("rows", 0.8, ["rest"]), ("adapter", 1.1, ["!rest"]), ("rtvq-b", 0.2, [])),
]
NUM_MASKED = 4


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Oracle:
    """A bank with a task or two of every scheme, and planes."""
    folder = tmp_path_factory.mktemp("schemes")
    base = make_base(folder / "base", TinyModel(dtype=torch.bfloat16, biased=True, num_layers=2))
    members = [f"{scheme}-{letter}" for scheme in OVER_SHARED for letter in "ab"]
    names = ("exact", *members, *ALONE)
    sources = {
        name: make_finetune(base, folder / name, seed=seed) for seed, name in enumerate(names)
    }
    archived = {name: sources[name] for name in ("exact", *members)}
    bank = build_bank(base, archived, Forms(Scheme("exact")), folder / "bank").path
    for scheme, text in OVER_SHARED.items():
        recode_bank(bank, base, Forms.parse(text), (f"{scheme}-a", f"{scheme}-b"))
    for scheme, text in ALONE.items():
        add_task(bank, base, scheme, sources[scheme], Forms.parse(text))
    add_task(bank, base, "adapter", make_adapter(base, folder / "adapter"))
    rows = change_rows(base, folder / "rows", "embed_tokens", "q_proj", "down_proj")
    add_task(bank, base, "rows", rows, Forms.parse("int4"))
    opened = Bank.open(bank)
    both = {"and-x": random_masks(opened, 1), "and-y": random_masks(opened, 2, without="mlp.up")}
    add_planes(bank, ("int4",), both)
    add_planes(bank, ("tall-a", "lowrank", "exact"), {"set": random_masks(opened, 3, "norm")})
    add_planes(bank, ("rows", "adapter"), {"rest": random_masks(opened, 4, "v_proj")})
    (folder / "merged").mkdir()
    return Oracle(base, bank, folder / "merged", models={})


@dataclass(frozen=True)
class Served:
    """An engine that holds every task of the bank, and its cache's budget."""

    engine: InProcessEngine
    cache_bytes: int


@pytest.fixture(scope="module", params=CASES)
def served(request: pytest.FixtureRequest, oracle: Oracle) -> Iterator[Served]:
    kernel, cache_bytes = CASES[request.param]
    if kernel == "native" and shutil.which("cc") is None:
        pytest.skip("there is no C compiler to build the kernels with")
    engine = InProcessEngine(
        oracle.base,
        oracle.bank,
        dtype="float32",
        max_num_seqs=len(MIXES),
        max_num_batched_tokens=64,
        max_model_len=256,
        block_size=32,
        kv_cache_memory_bytes=2**26,
        delta_cache_bytes=cache_bytes,
        kernel=kernel,
    )
    engine.load(*Bank.open(oracle.bank).entries)
    yield Served(engine, cache_bytes)
    engine.close()


def test_one_batch_of_every_scheme_and_plane(served: Served, oracle: Oracle) -> None:
    before = served.engine.memory()
    prompts = [prompt_of(5 + 13 * index, seed=index) for index in range(len(MIXES))]
    oracle.check(served.engine, MIXES, prompts)
    after = served.engine.memory()
    assert after.cache <= served.cache_bytes == after.cache_limit
    assert (after.cache > 0) is (served.cache_bytes > 0)
    assert after.cache_misses > before.cache_misses
    if served.cache_bytes == 2**28:
        held = len(MIXES) - NUM_MASKED
        served.engine.greedy(MIXES[:held], prompts[:held], num_tokens=2)
        assert served.engine.memory().cache_misses == after.cache_misses


def held_bytes(memory: DeltaMemory) -> tuple[int, int, int]:
    return memory.tasks, memory.shared, memory.planes


def test_what_leaves_the_engine_leaves_its_memory(served: Served, oracle: Oracle) -> None:
    engine, bank = served.engine, Bank.open(oracle.bank)
    prompts = [prompt_of(9, seed=index) for index in range(NUM_MASKED)]
    before = engine.memory()
    engine.greedy(MIXES[-NUM_MASKED:], prompts, num_tokens=2)
    held = engine.memory()
    assert (held.tasks, held.shared) == (before.tasks, before.shared)
    assert held.planes > 0
    engine.forget(*MIXES[-NUM_MASKED:])
    assert engine.memory().planes == 0
    engine.unload("tall-a")
    assert engine.memory().shared == held.shared, "another task is coded over the vector"
    engine.unload("tall-b")
    assert 0 < engine.memory().shared < held.shared
    for name in bank.entries:
        if not name.startswith("tall"):
            engine.unload(name)
    assert held_bytes(engine.memory()) == (0, 0, 0)
    assert engine.memory().cache == 0
    engine.load(*bank.entries)
    assert held_bytes(engine.memory()) == (held.tasks, held.shared, 0)


def test_tasks_are_held_as_they_are_coded(served: Served, oracle: Oracle) -> None:
    """Resident bytes are those of the packed codes, and a shared vector's are counted once."""
    bank = Bank.open(oracle.bank)
    matrices = {name for name, record in bank.base.tensors.items() if len(record.shape) > 1}
    num_weights = sum(bank.base.tensors[name].num_parameters for name in matrices)
    num_vectors = bank.base.num_parameters - num_weights
    most_bits = {"int4": 5.1, "tall-a": 1.1, "emr-a": 1.1, "rtvq-a": 3.1, "sign": 1.9}
    for task, bits in most_bits.items():
        digest = bank.entry(task).digest
        num_bytes = served.engine.change("taskmix_begin_load", task, digest)
        assert num_bytes <= num_weights * bits / 8 + 4 * num_vectors, task
    assert served.engine.memory().shared <= 3 * num_weights * 5.1 / 8
