"""What deltas take in the engine: read when asked for, without waiting for a busy engine."""

import asyncio

import prometheus_client

from taskmix_server.engine.base import DeltaMemory
from taskmix_server.errors import UnavailableError
from taskmix_server.runtime.memory import MemoryReading
from taskmix_server.telemetry.metrics import Metrics
from tests.unit.server.conftest import Parts
from tests.unit.server.fakes import FakeEngine


async def test_a_refreshed_reading_is_the_engines(parts: Parts) -> None:
    assert parts.tasks.memory.last == DeltaMemory()
    await parts.tasks.memory.refresh()
    assert parts.tasks.memory.last == DeltaMemory(tasks=200, cache=7, cache_limit=9)
    await parts.tasks.unload("head")
    await parts.tasks.memory.refresh()
    assert parts.tasks.memory.last.tasks == 100


async def test_a_busy_engine_is_asked_once_and_not_waited_for() -> None:
    engine = FakeEngine()
    engine.blocked = {"memory"}
    reading = MemoryReading(engine, max_wait_s=0.0)
    for _ in range(3):
        await reading.refresh()
    await engine.seen["memory"].wait()
    assert engine.log == [("memory", "")]
    assert reading.last == DeltaMemory()
    engine.gate.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert reading.last.cache_limit == 9


async def test_an_engine_that_is_down_leaves_the_last_reading() -> None:
    engine = FakeEngine()
    reading = MemoryReading(engine)
    await reading.refresh()
    engine.failure = UnavailableError("stopped")
    await reading.refresh()
    assert reading.last.cache == 7


def test_metrics_state_each_kind_of_bytes_apart() -> None:
    registry = prometheus_client.CollectorRegistry()
    metrics = Metrics(registry)
    memory = DeltaMemory(1, 2, 3, 4, 5, 6, 7)
    metrics.read_at_scrape(
        {"resident_bytes": lambda: memory.tasks},
        by_label={},
        delta_memory=lambda figure: getattr(memory, figure),
    )
    expected = {
        "taskmix_resident_bytes": 1,
        "taskmix_shared_bytes": 2,
        "taskmix_plane_bytes": 3,
        "taskmix_delta_cache_bytes": 4,
        "taskmix_delta_cache_limit_bytes": 5,
        "taskmix_delta_cache_hits": 6,
        "taskmix_delta_cache_misses": 7,
    }
    assert {name: registry.get_sample_value(name) for name in expected} == expected
