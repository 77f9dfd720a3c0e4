"""Tasks in tables of a device: what rows get of them, by the loops that define the kernels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from taskmix_composer.bank import Bank, EncodedDelta
from taskmix_composer.build import add_task, build_bank, remove_task
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Forms
from taskmix_composer.kernels.ops import select
from taskmix_composer.quant import decode, encode
from taskmix_server.engine.vllm import routed
from taskmix_server.engine.vllm.cache import DeltaCache
from taskmix_server.engine.vllm.coded import CodedLoader
from taskmix_server.engine.vllm.deltas import DeltaArranger, MaskedTask, TensorTable
from taskmix_server.engine.vllm.layers import add_embedding, add_outputs
from taskmix_server.engine.vllm.loading import TaskLoader
from taskmix_server.engine.vllm.sites import Part, Site, SiteKind
from taskmix_server.engine.vllm.starting import kernel_of
from taskmix_server.engine.vllm.steps import Planner, ResidentVariant, RowPlan
from taskmix_server.engine.vllm.store import DeltaStore
from taskmix_server.engine.vllm.tables import Coding, SlotTables, coding_of
from taskmix_server.errors import FailedPreconditionError
from tests.support.planes import add_planes, random_masks
from tests.unit.composer.models import (
    DOWN,
    EMBEDDING,
    QUERY,
    make_factors,
    make_weights,
    save_adapter,
    save_model,
    tuned,
)

CPU = torch.device("cpu")
DTYPE = torch.float16
SCHEMES = {
    "int4": "int4(group=32)",
    "coarse": "int2(group=0)",
    "sign": "sign",
    "salient": "sign(salient=0.1)",
    "int8": "int8",
    "dense": "dense",
}
SET = {"tall-a": 7, "tall-b": 8}
IN_TABLES = {"int4", "coarse", "sign", *SET}
TASKS = (*SCHEMES, *SET, "rows", "lora")
# In float16, of sums of up to a hundred products of about a tenth.
TOLERANCE = 4e-3

EMBED, HEAD = EMBEDDING.removesuffix(".weight"), "lm_head"
VOCABULARY = (Part(EMBED, 0, 12),)
FUSED = (Part(QUERY.removesuffix(".weight"), 0, 20), Part("unchanged", 20, 4))
SITES = (
    Site(EMBED, SiteKind.EMBEDDING, VOCABULARY, nn.Identity()),
    Site("qkv", SiteKind.LINEAR, FUSED, nn.Identity()),
    Site("down", SiteKind.LINEAR, (Part(DOWN.removesuffix(".weight"), 0, 20),), nn.Identity()),
    Site(HEAD, SiteKind.HEAD, VOCABULARY, nn.Identity()),
    Site("norm", SiteKind.NORM, (Part("model.norm", 0, 20),), nn.Identity()),
)
EMBEDDINGS, DOWNS, MATRICES = SITES[0], SITES[2], SITES[1:4]
TENSORS = {EMBED: EMBEDDING, "qkv": QUERY, "down": DOWN, HEAD: EMBEDDING}


class World:
    """A bank with a task or two of many schemes, and a store of them with room for `num_slots`."""

    def __init__(self, bank: Path, base: Path, num_slots: int) -> None:
        self.bank, self.base = Bank.open(bank), Checkpoint.open(base)
        self.table = TensorTable.of([*self.bank.base.tensors, "unchanged.weight"])
        self.tables = SlotTables(num_slots, self.table.columns, CPU)
        cache = DeltaCache(1 << 20)
        arranger = DeltaArranger(SITES, self.table, DTYPE, CPU, cache, self.tables)
        codes = CodedLoader(self.base, DTYPE, is_packing=False)
        self.store = DeltaStore(TaskLoader(codes, arranger), cache)

    def load(self, *names: str) -> None:
        for name in names:
            self.store.load_task(self.bank, name)

    def term(self, name: str, *masks: str) -> MaskedTask:
        return self.store.term(self.bank.entry(name).digest, masks)

    def delta(self, name: str, tensor: str) -> Tensor:
        """What the bank says of a task, float32; zero where it says nothing."""
        record = self.bank.entry(name).tensors.get(tensor)
        base = self.base.read(tensor)
        if record is None:
            return torch.zeros(base.shape)
        return decode(self.bank.read(name, tensor), base)

    def plan(self, mixes: list[dict[MaskedTask, Tensor]], row_ids: list[int]) -> RowPlan:
        """Rows of mixes that are numbered from 1."""
        variants = {
            number: ResidentVariant(tuple(mix.items())) for number, mix in enumerate(mixes, 1)
        }
        planner = Planner(len(self.table.columns), CPU, self.store.slots(), select("reference"))
        plan = planner.rows(np.array(row_ids), variants)
        assert plan is not None
        return plan


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tables")
    weights = make_weights()
    base = save_model(folder / "base", weights)
    source = {
        name: save_model(folder / name, tuned(weights, seed))
        for seed, name in enumerate([*SCHEMES, *SET], 1)
    }
    build_bank(base, {name: source[name] for name in SET}, Forms.parse("tall"), folder / "bank")
    for name, scheme in SCHEMES.items():
        add_task(folder / "bank", base, name, source[name], Forms.parse(scheme))
    rows = {name: weight.clone() for name, weight in weights.items()}
    rows[EMBEDDING][[2, 9]] += 1
    rows[QUERY][[0, 19]] += 1
    add_task(folder / "bank", base, "rows", save_model(folder / "rows", rows), Forms.parse("int4"))
    add_task(folder / "bank", base, "lora", save_adapter(folder / "lora", make_factors()))
    add_planes(folder / "bank", ("int4",), {"p": random_masks(Bank.open(folder / "bank"), 1)})
    return folder / "bank", base


@pytest.fixture
def world(paths: tuple[Path, Path]) -> World:
    return World(*paths, num_slots=len(TASKS))


def coefficients(world: World, seed: int) -> Tensor:
    """One for each tensor, all different."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(world.table.columns), generator=generator)


def expected(world: World, site: Site, x: Tensor, mix: dict[str, Tensor]) -> Tensor:
    """x @ (the mix's weights).T, float32."""
    tensor = TENSORS[site.name]
    column = world.table.columns[tensor]
    total = sum(values[column] * world.delta(name, tensor) for name, values in mix.items())
    assert isinstance(total, Tensor)
    product = x.float() @ total.T
    return nn.functional.pad(product, (0, site.num_outputs - product.shape[1]))


def mixes_of(world: World) -> list[dict[str, Tensor]]:
    """Alone, all of one kind, and everything there is."""
    named = [("int4",), ("tall-a", "tall-b", "sign"), ("rows", "lora", "dense"), TASKS]
    return [
        {name: coefficients(world, 10 * number + index) for index, name in enumerate(names)}
        for number, names in enumerate(named)
    ]


@pytest.fixture(params=["products", "composed"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(routed, "MAX_PAIRS", 0 if request.param == "composed" else 1000)
    way: str = request.param
    return way


@pytest.mark.parametrize("site", MATRICES, ids=lambda site: site.name)
def test_rows_get_what_their_tasks_add(world: World, site: Site, way: str) -> None:
    world.load(*TASKS)
    mixes, row_ids = mixes_of(world), [1, 0, 4, 2, 2, 3, 4, 0]
    plan = world.plan(
        [{world.term(name): values for name, values in mix.items()} for mix in mixes], row_ids
    )
    assert plan.routed is not None
    assert (plan.routed.blends is not None) is (way == "composed")
    generator = torch.Generator().manual_seed(0)
    num_inputs = world.base.read(TENSORS[site.name]).shape[1]
    x = torch.randn(len(row_ids), num_inputs, generator=generator).to(DTYPE)
    padding = 3 if site.kind is SiteKind.HEAD else 0  # a vocabulary is padded
    before = torch.randn(len(row_ids), site.num_outputs + padding, generator=generator).to(DTYPE)
    after = add_outputs(before.clone(), x, plan, site)
    for row, number in enumerate(row_ids):
        if number == 0:
            assert torch.equal(after[row], before[row])
            continue
        wanted = before[row].float()
        wanted[: site.num_outputs] += expected(world, site, x[row : row + 1], mixes[number - 1])[0]
        torch.testing.assert_close(after[row].float(), wanted, rtol=2e-3, atol=TOLERANCE)


def test_tokens_get_what_their_tasks_add(world: World) -> None:
    world.load(*TASKS)
    mixes, row_ids = mixes_of(world), [4, 0, 1, 2, 3]
    plan = world.plan(
        [{world.term(name): values for name, values in mix.items()} for mix in mixes], row_ids
    )
    ids, before = torch.tensor([9, 2, 11, 0, 2]), torch.ones(5, 20, dtype=DTYPE)
    after = add_embedding(before.clone(), ids, plan, EMBEDDINGS)
    one_hot = nn.functional.one_hot(ids, 12).float()
    for row, number in enumerate(row_ids):
        wanted = before[row].float()
        for name, values in mixes[number - 1].items() if number else ():
            scale = values[world.table.columns[EMBEDDING]]
            wanted += scale * (one_hot[row] @ world.delta(name, EMBEDDING))
        torch.testing.assert_close(after[row].float(), wanted, rtol=2e-3, atol=TOLERANCE)


def test_what_kernels_read_is_in_tables_and_nowhere_else(world: World) -> None:
    world.load(*TASKS)
    for name in TASKS:
        for site, delta in world.term(name).deltas.items():
            if site == "norm":
                continue
            assert bool(delta.tables) is (name in IN_TABLES), name
            assert bool(delta.weights) is (name not in IN_TABLES), name


def test_room_is_taken_at_the_start(world: World) -> None:
    world.tables.reserve(world.bank, SITES)
    reserved = world.tables.num_bytes
    assert reserved > 0
    world.load(*TASKS)
    assert world.tables.num_bytes == world.store.memory()["slots"] == reserved
    assert all(table.is_loaded.any() for table in world.tables._tables.values()), "no use for it"


def test_what_is_added_to_a_shared_vector_is_in_no_table() -> None:
    shared = encode(torch.ones(4, 64), Scheme.of("int4", group=32))
    added = encode(torch.ones(4, 64), Scheme.of("int2", group=32))
    over = EncodedDelta("affine", shared.shape, added.params, added.parts, shared=shared)
    assert coding_of(added, None, "", is_whole=True) == Coding(2, 32)
    assert coding_of(over, shared, "digest", is_whole=True) is None


def test_a_task_under_masks_is_not_in_tables(world: World) -> None:
    world.load("int4")
    world.store.load_plane(world.bank, "p")
    masked = world.term("int4", world.bank.plane_digests["p"])
    assert masked.slot is None
    values = coefficients(world, 1)
    plan = world.plan([{masked: values}], [1, 0])
    assert plan.routed is None
    x = torch.randn(2, 36, generator=torch.Generator().manual_seed(1)).to(DTYPE)
    kept = random_masks(world.bank, 1)[DOWN] * world.delta("int4", DOWN)
    wanted = torch.zeros(2, 20)
    wanted[0] = values[world.table.columns[DOWN]] * (x[0].float() @ kept.T)
    found = add_outputs(torch.zeros(2, 20, dtype=DTYPE), x, plan, DOWNS)
    torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=TOLERANCE)


def test_a_slot_is_used_again_without_what_was_in_it(paths: tuple[Path, Path]) -> None:
    world = World(*paths, num_slots=2)
    world.load("int4", "tall-a")
    with pytest.raises(FailedPreconditionError, match="--device-slots"):
        world.load("sign")
    world.store.unload_task(world.bank.entry("int4").digest)
    world.load("sign")
    assert world.term("sign").slot == 0
    assert world.term("tall-a").slot == 1
    x, values = torch.eye(36, dtype=DTYPE)[:20], coefficients(world, 2)
    plan = world.plan([{world.term("sign"): values}], [1] * 20)
    # The table of int4 is still there, and its slot is empty.
    assert len(world.store.slots().parts(DOWNS).tables) == 2
    found = add_outputs(torch.zeros(20, 20, dtype=DTYPE), x, plan, DOWNS)
    wanted = values[world.table.columns[DOWN]] * world.delta("sign", DOWN).T[:20]
    torch.testing.assert_close(found.float(), wanted, rtol=2e-3, atol=TOLERANCE)
    assert not any(
        bool(table.is_loaded[0])
        for (_, coding), table in world.tables._tables.items()
        if coding.bits == 4
    )


def test_a_shared_vector_goes_when_no_bank_and_no_task_has_it(
    paths: tuple[Path, Path], tmp_path: Path
) -> None:
    bank = tmp_path / "bank"
    shutil.copytree(paths[0], bank)
    world = World(bank, paths[1], num_slots=3)
    world.load(*SET)
    with_shared = world.tables.num_bytes
    for name in SET:
        remove_task(bank, name)
    after = World(bank, paths[1], num_slots=3)
    after.store, after.tables = world.store, world.tables
    after.store.load_task(after.bank, "dense")
    assert world.tables.num_bytes == with_shared, "tasks that are loaded still need it"
    for name in SET:
        world.store.unload_task(world.bank.entry(name).digest)
    after.store.load_task(after.bank, "int8")
    assert world.tables.num_bytes == 0


def test_triton_is_refused_where_it_cannot_run() -> None:
    chosen = {"kernel": "triton"}
    with pytest.raises(FailedPreconditionError, match="bfloat16"):
        kernel_of(chosen, torch.float32, CPU)
    with pytest.raises(FailedPreconditionError, match="CUDA"):
        kernel_of(chosen, torch.bfloat16, CPU)
    assert kernel_of(chosen, torch.bfloat16, torch.device("cuda")) == "triton"
    assert kernel_of({}, torch.bfloat16, torch.device("cuda")) == "torch"
    with pytest.raises(FailedPreconditionError, match="kernel must be one of"):
        kernel_of({"kernel": "fast"}, torch.bfloat16, CPU)
