"""How many series a server can make."""

from hypothesis import given
from hypothesis import strategies as st

from taskmix_server.telemetry.labels import OTHER, LabelPairs, LabelValues

NAMES = st.text("abcdefgh", min_size=1, max_size=2)


def test_values_keep_their_names_until_the_limit() -> None:
    labels = LabelValues(2)
    assert [labels.bounded(name) for name in "abcab"] == ["a", "b", OTHER, "a", "b"]


def test_pairs_have_a_limit_of_their_own() -> None:
    labels = LabelPairs(max_tenants=2, max_mixes=2, max_pairs=3)
    assert labels.bounded("x", "m") == ("x", "m")
    assert labels.bounded("y", "n") == ("y", "n")
    assert labels.bounded("x", "n") == ("x", "n")
    assert labels.bounded("y", "m") == ("y", OTHER)
    assert labels.bounded("z", "l") == (OTHER, OTHER)
    assert labels.bounded("x", "m") == ("x", "m")


@given(st.lists(st.tuples(NAMES, NAMES), max_size=200))
def test_no_calls_make_more_series_than_the_bounds(calls: list[tuple[str, str]]) -> None:
    labels = LabelPairs(max_tenants=3, max_mixes=4, max_pairs=5)
    given_out = {labels.bounded(*call) for call in calls}
    assert len({tenant for tenant, _ in given_out}) <= 3 + 1
    assert len({mix for _, mix in given_out}) <= 4 + 1
    assert len(given_out) <= 5 + (3 + 1)
