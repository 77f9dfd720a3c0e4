"""What a worker holds: coded content, shared vectors once, planes while mixes use them."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor, nn

from taskmix_composer.bank import Bank
from taskmix_composer.build import add_task, build_bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.errors import BankFormatError
from taskmix_composer.forms import Forms
from taskmix_composer.quant import decode
from taskmix_server.engine.vllm.cache import DeltaCache
from taskmix_server.engine.vllm.coded import CodedLoader
from taskmix_server.engine.vllm.deltas import DeltaArranger, MaskedTask, TensorTable
from taskmix_server.engine.vllm.loading import TaskLoader
from taskmix_server.engine.vllm.sites import Part, Site, SiteKind
from taskmix_server.engine.vllm.store import DeltaStore
from taskmix_server.errors import UnsupportedModelError
from tests.support.planes import add_planes, random_masks
from tests.unit.composer.models import (
    DOWN,
    EMBEDDING,
    NORM,
    QUERY,
    make_factors,
    make_weights,
    save_adapter,
    save_model,
    tuned,
)

MATRICES = (EMBEDDING, QUERY, DOWN)
FUSED = "model.layers.0.self_attn.qkv_proj"
NO_MASKS: tuple[str, ...] = ()


def sites_of(*tensors: str) -> tuple[Site, ...]:
    """A site for each tensor, the embedding's tied head, and one that fuses two matrices."""
    weights = make_weights()
    kinds = {EMBEDDING: SiteKind.EMBEDDING, NORM: SiteKind.NORM}
    sites = []
    for tensor in tensors:
        name = tensor.removesuffix(".weight")
        part = Part(name, 0, len(weights[tensor]))
        sites.append(Site(name, kinds.get(tensor, SiteKind.LINEAR), (part,), nn.Identity()))
        if tensor == EMBEDDING:
            sites.append(Site("lm_head", SiteKind.HEAD, (part,), nn.Identity()))
    return tuple(sites)


@dataclass(frozen=True)
class World:
    """A bank with tasks of several schemes, and how to make a store for it."""

    bank: Bank
    base: Checkpoint

    def store(
        self,
        cache_bytes: int = 1 << 20,
        dtype: torch.dtype = torch.float32,
        sites: tuple[Site, ...] = sites_of(*MATRICES, NORM),
    ) -> DeltaStore:
        cache = DeltaCache(cache_bytes)
        table = TensorTable.of(self.bank.base.tensors)
        arranger = DeltaArranger(sites, table, dtype, torch.device("cpu"), cache)
        codes = CodedLoader(self.base, dtype, is_packing=False)
        return DeltaStore(TaskLoader(codes, arranger), cache)

    def loaded(self, *tasks: str, **options: int) -> DeltaStore:
        store = self.store(**options)
        for task in tasks:
            store.load_task(self.bank, task)
        return store

    def digest(self, task: str) -> str:
        return self.bank.entry(task).digest

    def delta(self, task: str, tensor: str) -> Tensor:
        """What the bank says, float32."""
        return decode(self.bank.read(task, tensor), self.base.read(tensor))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    tmp_path = tmp_path_factory.mktemp("store")
    weights = make_weights()
    base = save_model(tmp_path / "base", weights)
    sources = {
        name: save_model(tmp_path / name, tuned(weights, seed=seed))
        for seed, name in enumerate(("one", "two", "int4", "dense", "exact", "svd"), start=1)
    }
    rows = {name: weight.clone() for name, weight in weights.items()}
    rows[EMBEDDING][[2, 9]] += 1
    rows[QUERY][[0, 19]] += 1
    sources["rows"] = save_model(tmp_path / "rows", rows)
    sources["lora"] = save_adapter(tmp_path / "lora", make_factors())
    path = tmp_path / "bank"
    set_bound = {name: sources.pop(name) for name in ("one", "two")}
    build_bank(base, set_bound, Forms(Scheme.of("tall", mtl=4)), path)
    schemes = {"int4": "int4", "dense": "dense", "exact": "exact", "svd": "lowrank(rank=2)"}
    for name, source in sources.items():
        add_task(path, base, name, source, Forms.parse(schemes.get(name, "int4")))
    opened = Bank.open(path)
    planes = {"p": random_masks(opened, 1), "q": random_masks(opened, 2, without="down_proj")}
    add_planes(path, ("int4",), planes)
    return World(Bank.open(path), Checkpoint.open(base))


TASKS = ("one", "two", "int4", "dense", "exact", "svd", "rows", "lora")


def check_products(term: MaskedTask, expected: Callable[[str], Tensor | None]) -> None:
    """A term computes with each tensor as with a dense one."""
    generator = torch.Generator().manual_seed(3)
    for tensor in MATRICES:
        delta = term.deltas.get(tensor.removesuffix(".weight"))
        dense = expected(tensor)
        if dense is None:
            assert delta is None, tensor
            continue
        assert delta is not None
        ((weight,), x) = delta.weights, torch.randn(5, dense.shape[1], generator=generator)
        torch.testing.assert_close(weight.product(x), x @ dense.T)
        ids = torch.tensor([0, 9, 2, 11])
        torch.testing.assert_close(weight.lookup(ids), dense[ids], rtol=1e-5, atol=1e-6)
    norm = term.deltas.get(NORM.removesuffix(".weight"))
    if expected(NORM) is not None:
        assert norm is not None
        ((_, vector),) = norm.vectors
        torch.testing.assert_close(vector, expected(NORM))


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("task", TASKS)
def test_every_scheme_computes_as_its_dense_delta(
    world: World, task: str, cache_bytes: int
) -> None:
    store = world.loaded(task, cache_bytes=cache_bytes)
    held = world.bank.entry(task).tensors
    for _ in range(2):  # made, and found in the cache if there is one
        check_products(
            store.term(world.digest(task), NO_MASKS),
            lambda tensor: world.delta(task, tensor) if tensor in held else None,
        )


@pytest.mark.parametrize("task", ["one", "int4", "exact", "svd", "rows", "lora"])
def test_masks_cut_what_a_task_adds(world: World, task: str) -> None:
    p, q = (world.bank.plane_digests[name] for name in "pq")
    store = world.loaded(task)
    for name in ("p", "q"):
        store.load_plane(world.bank, name)
    held = world.bank.entry(task).tensors
    masks_p, masks_q = random_masks(world.bank, 1), random_masks(world.bank, 2, "down_proj")

    def within_both(tensor: str) -> Tensor | None:
        if tensor not in held or tensor not in masks_q:
            return None
        return world.delta(task, tensor) * masks_p[tensor] * masks_q[tensor]

    def outside_q(tensor: str) -> Tensor | None:
        if tensor not in held:
            return None
        kept = ~masks_q[tensor] if tensor in masks_q else True
        return world.delta(task, tensor) * kept

    check_products(store.term(world.digest(task), tuple(sorted((p, q)))), within_both)
    check_products(store.term(world.digest(task), (f"!{q}",)), outside_q)


def test_parts_of_a_fused_module_are_stacked_in_order(world: World) -> None:
    first = Part(QUERY.removesuffix(".weight"), 0, 20)
    unchanged = Part("another", 20, 4)
    last = Part(EMBEDDING.removesuffix(".weight"), 24, 12)
    fused = Site(FUSED, SiteKind.LINEAR, (first, unchanged, last), nn.Identity())
    sites = (fused, *sites_of(DOWN, NORM))
    store = world.store(sites=sites)
    store.load_task(world.bank, "rows")
    ((weight,), x) = store.term(world.digest("rows"), NO_MASKS).deltas[FUSED].weights, torch.eye(20)
    stacked = torch.cat([world.delta("rows", tensor) for tensor in (QUERY, EMBEDDING)])
    torch.testing.assert_close(weight.product(x), stacked.T)
    assert [(segment.start, segment.size) for segment in weight.segments] == [(0, 20), (24, 12)]


def test_a_tied_head_shares_what_its_embedding_holds(world: World) -> None:
    deltas = world.loaded("int4").term(world.digest("int4"), NO_MASKS).deltas
    assert deltas["lm_head"] is deltas[EMBEDDING.removesuffix(".weight")]


def test_a_shared_vector_is_held_once_and_goes_with_its_last_task(world: World) -> None:
    store = world.loaded("one")
    alone = store.memory()
    assert alone["shared"] > 0
    store.load_task(world.bank, "two")
    assert store.memory()["shared"] == alone["shared"]
    assert store.memory()["tasks"] == sum(store.task_bytes(world.digest(t)) for t in ("one", "two"))
    store.unload_task(world.digest("one"))
    assert store.memory()["shared"] == alone["shared"]
    store.unload_task(world.digest("two"))
    assert {**store.memory(), "cache_limit": 0} == dict.fromkeys(alone, 0)


def test_tasks_are_held_coded(world: World) -> None:
    """Bytes are those of the packed codes; the norm is float32."""
    store = world.loaded("one", "int4", cache_bytes=0)
    for task in ("one", "int4"):
        coded = sum(world.bank.read(task, tensor).num_bytes for tensor in (*MATRICES, NORM))
        assert store.task_bytes(world.digest(task)) == coded
    masks = sum(-(-columns // 8) * rows for rows, columns in ((12, 20), (20, 20), (20, 36)))
    assert store.task_bytes(world.digest("one")) == masks + 4 * 20


def test_what_is_coded_as_plain_numbers_needs_no_second_form(world: World) -> None:
    store = world.store(dtype=torch.bfloat16)
    for task in ("dense", "exact", "lora"):
        store.load_task(world.bank, task)
    assert store.memory()["cache"] == 0
    dense = 2 * sum(weight.numel() for weight in make_weights().values() if weight.dim() > 1)
    assert store.task_bytes(world.digest("dense")) == dense + 4 * 20
    assert store.task_bytes(world.digest("exact")) == dense + 4 * 20


def test_dense_forms_are_made_at_loading_where_there_is_room(world: World) -> None:
    store = world.loaded("int4")
    forms = 4 * sum(weight.numel() for weight in make_weights().values() if weight.dim() > 1)
    assert store.memory()["cache"] == forms
    check_products(
        store.term(world.digest("int4"), NO_MASKS), lambda tensor: world.delta("int4", tensor)
    )
    assert store.memory()["cache_misses"] == 0
    assert store.memory()["cache_hits"] > 0
    store.unload_task(world.digest("int4"))
    assert store.memory()["cache"] == 0


def test_masked_terms_and_planes_go_when_no_mix_uses_them(world: World) -> None:
    store = world.loaded("int4")
    p, q = (world.bank.plane_digests[name] for name in "pq")
    for name in ("p", "q"):
        store.load_plane(world.bank, name)
    before = store.memory()
    plane_bytes = {
        digest: sum(
            world.bank.read_plane(name, tensor).num_bytes  # type: ignore[union-attr]
            for tensor in world.bank.plane(name).content.tensors
        )
        for name, digest in (("p", p), ("q", q))
    }
    assert before["planes"] == sum(plane_bytes.values())
    key = (world.digest("int4"), (p,))
    term = store.term(*key)
    assert store.term(*key) is term
    term.deltas[DOWN.removesuffix(".weight")].weights[0].product(torch.zeros(1, 36))
    assert store.memory()["cache"] > before["cache"]
    store.keep_masked({key})
    assert not store.holds_plane(q)
    assert store.memory()["planes"] == plane_bytes[p] + 4 * 20, "the plane and a masked norm"
    store.keep_masked(set())
    assert not store.has_planes
    after = store.memory()
    assert (after["planes"], after["cache"]) == (0, before["cache"])


def test_a_task_of_tensors_that_no_site_takes_is_refused(world: World) -> None:
    store = world.store(sites=sites_of(EMBEDDING, QUERY, NORM))
    with pytest.raises(UnsupportedModelError, match="down_proj"):
        store.load_task(world.bank, "one")
    assert not store.holds_task(world.digest("one"))


def test_a_damaged_task_leaves_nothing_of_its_shared_vector(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.bank.path, tmp_path / "bank")
    (shard,) = (tmp_path / "bank" / "shards").glob("one-*")
    with shard.open("r+b") as file:
        file.seek(-1, 2)
        file.write(bytes([shard.read_bytes()[-1] ^ 1]))
    store = world.store()
    with pytest.raises(BankFormatError, match="one"):
        store.load_task(Bank.open(tmp_path / "bank"), "one")
    assert not store.holds_task(world.digest("one"))
    assert (store.memory()["tasks"], store.memory()["shared"]) == (0, 0)


def test_a_loaded_task_does_not_read_the_banks_files(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.bank.path, tmp_path / "bank")
    world = World(Bank.open(tmp_path / "bank"), world.base)
    expected = {tensor: world.delta("svd", tensor).clone() for tensor in (*MATRICES, NORM)}
    store = world.loaded("svd", "one", cache_bytes=0)
    one = {tensor: world.delta("one", tensor).clone() for tensor in (*MATRICES, NORM)}
    for shard in (world.bank.path / "shards").iterdir():
        with shard.open("r+b") as file:
            file.write(bytes(shard.stat().st_size))
    check_products(store.term(world.digest("svd"), NO_MASKS), expected.__getitem__)
    check_products(store.term(world.digest("one"), NO_MASKS), one.__getitem__)


def test_a_task_that_is_ready_is_held_once_it_is_installed(world: World) -> None:
    store = world.loaded("int4")
    before, slots = store.memory(), store.slots()
    loaded = store.loader.load(world.bank, "one", store.held())
    assert store.memory() == before
    assert store.slots() is slots
    store.install(loaded)
    term = store.term(world.digest("one"), NO_MASKS)
    assert store.slots() is loaded.slots
    assert store.slots().of(term) == 1
    check_products(term, lambda tensor: world.delta("one", tensor))


def test_slots_are_ready_with_the_tables_of_every_module(world: World) -> None:
    store = world.store()
    loaded = store.loader.load(world.bank, "int4", store.held())
    sites = store.loader.arranger.sites
    ready = {site.name: loaded.slots.parts(site) for site in sites}
    store.install(loaded)
    assert all(store.slots().parts(site) is ready[site.name] for site in sites)
    left = store.loader.slots(store.terms_without(world.digest("int4")))
    assert left.tasks == ()
    store.unload_task(world.digest("int4"), left)
    assert store.slots() is left


def test_a_term_that_was_made_while_a_task_was_read_has_its_slot(world: World) -> None:
    store = world.loaded("int4")
    loaded = store.loader.load(world.bank, "svd", store.held())
    store.load_plane(world.bank, "p")
    masked = store.term(world.digest("int4"), (world.bank.plane_digests["p"],))
    store.install(loaded)
    assert set(store.slots().tasks) == {
        store.term(world.digest("int4"), NO_MASKS),
        store.term(world.digest("svd"), NO_MASKS),
        masked,
    }


def test_dense_forms_that_were_made_ready_drive_nothing_out(world: World) -> None:
    forms = 4 * sum(weight.numel() for weight in make_weights().values() if weight.dim() > 1)
    store = world.store(cache_bytes=forms)
    loaded = store.loader.load(world.bank, "one", store.held())
    assert sum(dense.nbytes for dense in loaded.dense.values()) == forms
    store.load_task(world.bank, "int4")
    store.install(loaded)
    check_products(
        store.term(world.digest("int4"), NO_MASKS), lambda tensor: world.delta("int4", tensor)
    )
    assert store.memory()["cache_misses"] == 0


def test_no_more_dense_forms_are_kept_ready_than_there_is_room_for(world: World) -> None:
    store = world.store(cache_bytes=4 * 20 * 20)
    loaded = store.loader.load(world.bank, "int4", store.held())
    assert sum(dense.nbytes for dense in loaded.dense.values()) <= 4 * 20 * 20
    assert len(loaded.dense) == 1


def test_a_vector_that_is_held_is_not_read_again(world: World) -> None:
    store = world.loaded("one")
    loaded = store.loader.load(world.bank, "two", store.held())
    assert loaded.shared is store.held().shared[world.bank.entry("two").shared]


def test_a_load_leaves_no_pages_of_the_bank_in_memory(world: World) -> None:
    def read_bytes() -> int:
        maps, shards = psutil.Process().memory_maps(grouped=False), str(world.bank.path)
        return sum(int(each.rss) for each in maps if shards in each.path)

    before = read_bytes()
    world.bank.read("int4", QUERY)
    assert read_bytes() > before
    store = world.loaded(*TASKS)
    assert read_bytes() == 0
    assert store.holds_task(world.digest("int4"))
