"""Buckets: exact waits, debts, rates that change."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskmix_server.tenancy.bucket import Bucket


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_starts_full_and_tells_the_exact_wait(clock: Clock) -> None:
    bucket = Bucket(clock)
    for _ in range(4):
        assert bucket.wait_s(4.0) == 0.0
        bucket.spend(4.0, 1.0)
    assert bucket.wait_s(4.0) == pytest.approx(0.25)
    clock.now_s += 0.2
    assert bucket.wait_s(4.0) == pytest.approx(0.05)


def test_a_slow_rate_still_allows_one(clock: Clock) -> None:
    bucket = Bucket(clock)
    assert bucket.wait_s(0.1) == 0.0
    bucket.spend(0.1, 1.0)
    assert bucket.wait_s(0.1) == pytest.approx(10.0)


def test_a_debt_is_paid_at_the_rate(clock: Clock) -> None:
    bucket = Bucket(clock)
    bucket.spend(10.0, 500.0)
    assert bucket.wait_s(10.0) == pytest.approx(49.1)
    clock.now_s += 49.1
    assert bucket.wait_s(10.0) == 0.0


def test_it_holds_no_more_than_a_burst(clock: Clock) -> None:
    bucket = Bucket(clock)
    clock.now_s += 10_000.0
    bucket.spend(10.0, 10.0)
    assert bucket.wait_s(10.0) == pytest.approx(0.1)


def test_a_new_rate_counts_at_once(clock: Clock) -> None:
    bucket = Bucket(clock)
    bucket.spend(1.0, 10.0)
    assert bucket.wait_s(1.0) == pytest.approx(10.0)
    assert bucket.wait_s(100.0) == pytest.approx(0.1)


@given(
    rate=st.floats(0.1, 1000.0),
    spends=st.lists(st.tuples(st.floats(0.0, 5.0), st.floats(0.0, 500.0)), max_size=30),
)
def test_a_caller_who_waits_as_told_is_let_in_and_none_sooner(
    rate: float, spends: list[tuple[float, float]]
) -> None:
    clock = Clock()
    bucket = Bucket(clock)
    for elapsed_s, amount in spends:
        clock.now_s += elapsed_s
        bucket.spend(rate, amount)
    wait_s = bucket.wait_s(rate)
    if wait_s > 0.01:
        clock.now_s += 0.9 * wait_s
        assert bucket.wait_s(rate) > 0.0
        clock.now_s += 0.1 * wait_s
    else:
        clock.now_s += wait_s
    assert bucket.wait_s(rate) == pytest.approx(0.0, abs=1e-6)
