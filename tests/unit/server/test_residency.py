"""Tasks under a budget of bytes: who goes, who waits, and what is never let go."""

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmix_composer.bank import Bank
from taskmix_composer.build import build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Forms
from taskmix_composer.mix import Mix
from taskmix_server.errors import FailedPreconditionError, NotFoundError, UnavailableError
from taskmix_server.runtime.residency import Residency
from taskmix_server.runtime.statuses import TaskState
from taskmix_server.runtime.tasks import TaskRegistry
from taskmix_server.runtime.variants import VariantCache
from tests.unit.composer.models import make_weights, save_model, tuned
from tests.unit.server.fakes import FakeEngine

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Bank:
    folder = tmp_path_factory.mktemp("residency")
    weights = make_weights()
    base = save_model(folder / "base", weights)
    sources: dict[str, Path] = {
        name: save_model(folder / name, tuned(weights, seed=seed))
        for seed, name in enumerate(NAMES, start=1)
    }
    build_bank(base, sources, Forms(Scheme("int4")), folder / "bank")
    return Bank.open(folder / "bank")


@pytest.fixture
def size(bank: Bank) -> int:
    """What each task takes, in the bank and in the engine."""
    (size,) = {bank.entry(name).num_bytes for name in NAMES}
    return size


@pytest.fixture
async def engine(size: int) -> FakeEngine:
    engine = FakeEngine()
    engine.num_task_bytes = size
    return engine


@pytest.fixture
async def tasks(bank: Bank, engine: FakeEngine, size: int) -> TaskRegistry:
    """Four tasks served, with room for two; the last two loaded are in the engine."""
    registry = TaskRegistry(bank, engine, max_bytes=2 * size)
    for name in NAMES:
        await registry.load(name)
    engine.log.clear()
    return registry


@pytest.fixture
def variants(tasks: TaskRegistry, engine: FakeEngine) -> VariantCache:
    return VariantCache(tasks, engine)


def states(tasks: TaskRegistry) -> dict[str, str]:
    return {status.name: status.state.value for status in tasks.statuses()}


def loads(engine: FakeEngine) -> list[str]:
    return [subject for verb, subject in engine.log if verb == "load"]


async def settle() -> None:
    """Let every task of the loop that can run do so."""
    for _ in range(30):
        await asyncio.sleep(0)


async def test_what_was_used_least_recently_makes_room(tasks: TaskRegistry, size: int) -> None:
    assert states(tasks) == {
        "a": "offloaded",
        "b": "offloaded",
        "c": "resident",
        "d": "resident",
    }
    async with tasks.use(tasks.digests(Mix.parse("c"))):
        pass
    async with tasks.use(tasks.digests(Mix.parse("a"))):
        assert states(tasks)["d"] == "offloaded"
        assert tasks.status("a").references == 1
    assert tasks.resident_bytes == 2 * size


async def test_a_lease_loads_what_is_offloaded(
    tasks: TaskRegistry, variants: VariantCache, engine: FakeEngine
) -> None:
    async with variants.lease(Mix.parse("c+d")), variants.lease(Mix.parse("d")):
        pass
    async with variants.lease(Mix.parse("a+b")) as variant:
        assert engine.tasks == set(variant.entries.values())
        assert list(engine.variants) == [variant.digest]  # those of what left were forgotten first
    assert loads(engine) == ["a", "b"]
    assert tasks.num_references == 0


async def test_what_requests_use_is_waited_for(tasks: TaskRegistry, engine: FakeEngine) -> None:
    used = tasks.digests(Mix.parse("c+d"))
    async with tasks.use(used):
        waiting = asyncio.create_task(enter(tasks, "a"))
        await settle()
        assert engine.log == []
        late = asyncio.create_task(enter(tasks, "c"))  # for what is leaving: it waits its turn
        await settle()
        assert not late.done()
    await asyncio.gather(waiting, late)
    assert set(used.values()) - engine.tasks, "one had to go"
    assert tasks.num_references == 0


async def enter(tasks: TaskRegistry, mix: str) -> None:
    async with tasks.use(tasks.digests(Mix.parse(mix))):
        await asyncio.sleep(0)


async def test_idle_tasks_go_before_those_in_use(tasks: TaskRegistry, engine: FakeEngine) -> None:
    async with tasks.use(tasks.digests(Mix.parse("c"))):  # used first, and still
        await enter(tasks, "d")
        await enter(tasks, "a")
        assert states(tasks)["c"] == "resident"


async def test_a_caller_that_leaves_keeps_nothing(tasks: TaskRegistry, engine: FakeEngine) -> None:
    engine.blocked, digests = {"load"}, tasks.digests(Mix.parse("a+b"))
    engine.seen.clear()
    waiting = asyncio.create_task(enter(tasks, "a+b"))
    await engine.seen["load"].wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    engine.gate.set()
    await settle()
    assert engine.tasks == set(digests.values())
    assert tasks.num_references == 0


async def test_an_unload_while_a_request_waits(tasks: TaskRegistry, engine: FakeEngine) -> None:
    async with tasks.use(tasks.digests(Mix.parse("c+d"))):
        first = asyncio.create_task(enter(tasks, "a"))
        await settle()
        unloading = asyncio.create_task(tasks.unload("b"))
        await settle()
        waiting = asyncio.create_task(enter(tasks, "b"))
        await settle()
    await asyncio.gather(first, unloading)
    with pytest.raises(NotFoundError, match="'b' was unloaded or replaced while"):
        await waiting


async def test_a_mix_that_can_never_fit(tasks: TaskRegistry, engine: FakeEngine, size: int) -> None:
    message = f"at most {2 * size:,} bytes .* against {3 * size:,} of a, b, c"
    with pytest.raises(FailedPreconditionError, match=message):
        await enter(tasks, "a+b+c")
    assert loads(engine) == [], "what they take was known"
    assert states(tasks)["d"] == "resident"


async def test_a_task_that_turns_out_too_large(bank: Bank, engine: FakeEngine, size: int) -> None:
    engine.num_task_bytes = 3 * size
    registry = TaskRegistry(bank, engine, max_bytes=2 * size)
    for expected in ("load", "unload"), ():
        engine.log.clear()
        with pytest.raises(FailedPreconditionError, match=f"against {3 * size:,} of a"):
            await registry.load("a")
        assert tuple(verb for verb, _ in engine.log) == expected  # the second time it is known
    assert (registry.resident_bytes, states(registry)["a"]) == (0, "on disk")


async def test_a_task_that_turns_out_larger_drives_out_more(
    bank: Bank, engine: FakeEngine, size: int
) -> None:
    registry = TaskRegistry(bank, engine, max_bytes=2 * size)
    await registry.load("a")
    engine.num_task_bytes = size + 1
    await registry.load("b")
    assert registry.resident_bytes == size + 1
    assert states(registry)["a"] == "offloaded"


async def test_offers_load_while_there_is_room(bank: Bank, engine: FakeEngine, size: int) -> None:
    registry = TaskRegistry(bank, engine, max_bytes=2 * size)
    offered = [(await registry.offer(name)).state for name in NAMES]
    assert offered == [TaskState.RESIDENT] * 2 + [TaskState.OFFLOADED] * 2
    assert loads(engine) == ["a", "b"]
    assert set(registry.digests(Mix.parse("a+b+c+d"))) == set(NAMES)


async def test_without_a_budget_nothing_leaves(bank: Bank) -> None:
    registry = TaskRegistry(bank, FakeEngine())
    assert [(await registry.offer(name)).state for name in NAMES] == [TaskState.RESIDENT] * 4


async def test_a_new_engine_gets_what_the_old_one_held(
    tasks: TaskRegistry, engine: FakeEngine, size: int
) -> None:
    engine.tasks.clear()
    await tasks.restore()
    assert loads(engine) == ["c", "d"]
    await enter(tasks, "a")
    assert tasks.resident_bytes == 2 * size


async def test_a_failed_load_leaves_the_others_servable(
    tasks: TaskRegistry, engine: FakeEngine
) -> None:
    engine.refused = {"a": UnavailableError("the engine stopped")}
    with pytest.raises(UnavailableError):
        await enter(tasks, "a")
    await enter(tasks, "c+d")
    assert states(tasks)["a"] == "offloaded"


@settings(max_examples=60, deadline=None)
@given(
    mixes=st.lists(st.sets(st.sampled_from(NAMES), min_size=1, max_size=2), max_size=12),
    lengths=st.lists(st.integers(0, 40), min_size=12, max_size=12),
)
def test_the_budget_holds_and_everybody_is_served(
    bank: Bank, mixes: list[set[str]], lengths: list[int]
) -> None:
    """Requests of any mixes at once: all end, and no sum passes the budget."""

    async def run() -> None:
        engine = _Watched(room=2)
        engine.num_task_bytes = bank.entry("a").num_bytes
        registry = TaskRegistry(bank, engine, max_bytes=2 * engine.num_task_bytes)
        for name in NAMES:
            await registry.load(name)
        variants = VariantCache(registry, engine)

        async def request(names: set[str], length: int) -> None:
            async with variants.lease(Mix.parse("+".join(sorted(names)))) as variant:
                for _ in range(length):
                    await asyncio.sleep(0)
                    assert engine.tasks.issuperset(variant.entries.values())

        async with asyncio.timeout(10):
            await asyncio.gather(*map(request, mixes, lengths))
        assert registry.num_references == 0

    asyncio.run(run())


class _Watched(FakeEngine):
    """Fails when it is given more tasks than it has room for."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    async def load_task(self, name: str, digest: str) -> int:
        await asyncio.sleep(0)
        num_bytes = await super().load_task(name, digest)
        assert len(self.tasks) <= self._room
        return num_bytes


async def test_one_content_under_two_names_is_loaded_once(bank: Bank, engine: FakeEngine) -> None:
    residency, entry = Residency(engine), bank.entry("a")
    await residency.load({"a": entry, "twin": entry})
    assert (len(engine.log), residency.num_bytes) == (1, engine.num_task_bytes)
