"""The cache of dense forms: within its budget, least recently used first."""

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmix_server.engine.vllm.cache import DeltaCache


def made(num_bytes: int, log: list[int]) -> Callable[[], Tensor]:
    """A maker of that many bytes that notes its calls."""

    def make() -> Tensor:
        log.append(num_bytes)
        return zeros(num_bytes)

    return make


def zeros(num_bytes: int) -> Tensor:
    return torch.zeros(num_bytes, dtype=torch.uint8)


def test_what_was_made_is_there_until_it_is_dropped() -> None:
    cache, log = DeltaCache(100), []
    first = cache.get("a", made(40, log))
    assert cache.get("a", made(40, log)) is first
    assert (len(log), cache.num_hits, cache.num_misses, cache.num_bytes) == (1, 1, 1, 40)
    cache.drop(["a", "unknown"])
    assert cache.num_bytes == 0
    cache.get("a", made(40, log))
    assert len(log) == 2


def test_the_least_recently_used_makes_room() -> None:
    cache, log = DeltaCache(100), []
    for key in ("a", "b", "a", "c"):
        cache.get(key, made(40, log))
    log.clear()
    for key in ("a", "c", "b"):
        cache.get(key, made(40, log))
    assert len(log) == 1, "only b had left"


def test_what_is_larger_than_the_budget_drives_nothing_out() -> None:
    cache, log = DeltaCache(100), []
    cache.get("a", made(40, log))
    assert len(cache.get("large", made(101, log))) == 101
    assert cache.num_bytes == 40
    cache.get("a", made(40, log))
    assert log == [40, 101]


def test_without_a_budget_everything_is_made_at_each_use() -> None:
    cache, log = DeltaCache(0), []
    cache.fill("a", zeros(4))
    for _ in range(3):
        assert len(cache.get("a", made(4, log))) == 4
    assert (len(log), cache.num_misses, cache.num_bytes) == (3, 3, 0)


def test_filling_takes_free_room_only() -> None:
    cache, log = DeltaCache(100), []
    cache.fill("a", zeros(60))
    cache.fill("b", zeros(60))
    assert (cache.num_bytes, cache.num_misses) == (60, 0)
    cache.get("a", made(60, log))
    assert (cache.num_hits, log) == (1, [])


SIZES = {"a": 0, "b": 3, "c": 7, "d": 10, "e": 11}
CALLS = st.tuples(st.sampled_from(["get", "fill", "drop"]), st.sampled_from(sorted(SIZES)))


@given(max_bytes=st.integers(0, 24), calls=st.lists(CALLS, max_size=40))
def test_it_never_holds_more_than_its_budget(max_bytes: int, calls: list[tuple[str, str]]) -> None:
    cache, log = DeltaCache(max_bytes), []
    for call, key in calls:
        if call == "drop":
            cache.drop([key])
        elif call == "fill":
            cache.fill(key, zeros(SIZES[key]))
        else:
            assert len(cache.get(key, made(SIZES[key], log))) == SIZES[key]
        assert 0 <= cache.num_bytes <= max_bytes
