"""Unexpected input to both edges of a real server: an answer that says what is wrong, each time."""

from collections.abc import Iterator, Mapping

import pytest

from tests.support.bodies import CHAT, COMPLETIONS, odd_bodies
from tests.support.examples import RPCS
from tests.support.fuzzing import (
    Tally,
    fuzz_grpc,
    fuzz_http,
    fuzz_odd_values,
    short_answers,
    still_answers,
)
from tests.support.guarded import Guarded, guarding
from tests.support.models import make_models

NUM_PER_RPC = 12
NUM_PER_ROUTE = 150


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    directory = tmp_path_factory.mktemp("fuzzed")
    with guarding(make_models(directory), directory) as opened, short_answers(opened):
        yield opened


def assert_no_fault(tallies: Mapping[str, Tally], paths: tuple[str, ...], num_each: int) -> None:
    assert tallies.keys() == set(paths)
    assert not [fault for tally in tallies.values() for fault in tally.faults]
    assert all(tally.statuses.total() == num_each for tally in tallies.values())


def test_messages(guarded: Guarded) -> None:
    tallies = fuzz_grpc(guarded, num_rounds=1, num_per_rpc=NUM_PER_RPC)
    assert_no_fault(tallies, RPCS, NUM_PER_RPC)
    still_answers(guarded)


def test_values_that_are_odd(guarded: Guarded) -> None:
    tallies = fuzz_odd_values(guarded)
    assert_no_fault(tallies, (COMPLETIONS, CHAT), len(odd_bodies(COMPLETIONS)))
    still_answers(guarded)


def test_bodies(guarded: Guarded) -> None:
    tallies = fuzz_http(guarded, NUM_PER_ROUTE)
    assert_no_fault(tallies, (COMPLETIONS, CHAT), NUM_PER_ROUTE)
    assert all(tally.statuses["200"] for tally in tallies.values())
    still_answers(guarded)
