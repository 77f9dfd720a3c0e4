"""Assignment: pinned, sticky, uniform, independent, exact at its limits."""

import subprocess
import sys
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2_contingency, chisquare

from taskmix_server.errors import InvalidRequestError
from taskmix_server.experiments.assignment import Assignment, Split, Unit

NUM_SUBJECTS = 1_000_000
THREE = (("a", "0.5"), ("b", "0.3"), ("c", "0.2"))
TEN = tuple((f"arm{n}", "0.1") for n in range(10))
HALVES = (("control", "0.5"), ("treatment", "0.5"))

subjects = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
shares = st.integers(0, 1000).map(lambda n: Decimal(n) / 1000)


def letters(split: Split, count: int) -> str:
    return "".join(split.assign(f"user-{n}").arm or "-" for n in range(count))


# No release may ever change these: subjects would change arms in experiments that run.
def test_assignments_are_pinned():
    assert letters(Split("three", THREE), 60) == (
        "aaabacacbacaaaabbaabbaaccacaaaaacaacbabaaacababaaabbaababbbb"
    )
    assert letters(Split("three", THREE, ramp="0.5"), 60) == (
        "aa---c-c--c-----ba--b---c-c-------a-b---a--a-a-------a-a---b"
    )
    split = Split("checkout", HALVES)
    assert [split.assign(subject).arm for subject in ("ada", "grace", "Zoë", "日本")] == [
        "control",
        "treatment",
        "treatment",
        "treatment",
    ]
    requests = [Split("three", THREE).assign_request(f"user-{n}").arm for n in range(30)]
    assert "".join(map(str, requests)) == "babaabaacacaacabcaababbabaaaaa"


def test_another_process_gives_the_same_arms():
    program = (
        "from taskmix_server.experiments.assignment import Split\n"
        f"split = Split('three', {THREE!r}, '0.7')\n"
        "print(''.join(split.assign(f'user-{n}').arm or '-' for n in range(200)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert done.stdout.decode().strip() == letters(Split("three", THREE, "0.7"), 200)


@pytest.fixture(scope="module")
def table():
    """Subjects by arm of two experiments, int [3, 10]."""
    first, second = Split("first", THREE), Split("second", TEN)
    counted: dict[tuple[str | None, str | None], int] = {}
    for n in range(NUM_SUBJECTS):
        pair = first.assign(f"s{n}").arm, second.assign(f"s{n}").arm
        counted[pair] = counted.get(pair, 0) + 1
    return np.array([[counted[a, b] for b, _ in TEN] for a, _ in THREE])


def test_a_million_subjects_get_the_shares(table):
    for counts, expected in (
        (table.sum(axis=1), np.array([0.5, 0.3, 0.2])),
        (table.sum(axis=0), np.full(10, 0.1)),
    ):
        assert np.abs(counts / NUM_SUBJECTS - expected).max() < 0.003
        assert chisquare(counts, NUM_SUBJECTS * expected).pvalue > 0.001


def test_two_experiments_know_nothing_of_each_other(table):
    assert chi2_contingency(table).pvalue > 0.001


def test_the_ramp_takes_its_share_and_leaves_the_arms_theirs():
    split = Split("ramped", THREE, ramp="0.3")
    arms = [split.assign(f"s{n}").arm for n in range(100_000)]
    counts = np.array([arms.count(name) for name, _ in THREE])
    assert chisquare([counts.sum(), arms.count(None)], [30_000, 70_000]).pvalue > 0.001
    assert chisquare(counts, counts.sum() * np.array([0.5, 0.3, 0.2])).pvalue > 0.001


@given(subjects, shares, shares)
def test_raising_the_ramp_moves_nobody(subject, one, other):
    low, high = sorted((one, other))
    before = Split("salt", THREE, low).assign(subject)
    after = Split("salt", THREE, high).assign(subject)
    assert not before.is_exposed or before == after


@given(subjects, shares, shares)
def test_a_growing_first_arm_keeps_its_subjects(subject, one, other):
    low, high = sorted((one, other))
    arms = [
        Split("s", (("a", share), ("b", 1 - share))).assign(subject).arm for share in (low, high)
    ]
    assert arms != ["a", "b"]


@given(subjects)
def test_nothing_and_everything_are_exact(subject):
    assert Split("s", THREE, ramp=0).assign(subject) == Assignment(None)
    assert Split("s", THREE, ramp=1).assign(subject).is_exposed
    assert Split("s", (("a", 0), ("b", 1), ("c", 0))).assign(subject).arm == "b"


def test_shares_are_the_decimals_that_were_written():
    split = Split("s", (("b", 0.1), ("a", "0.7"), ("c", 0.2)), ramp=0.3)
    assert split.arms == (("a", Decimal("0.7")), ("b", Decimal("0.1")), ("c", Decimal("0.2")))
    assert split.ramp == Decimal("0.3")
    assert split == Split("s", (("c", "0.2"), ("a", 0.7), ("b", "0.1")), ramp="0.3")


def test_thirds_sum_to_one_closely_enough():
    split = Split("s", tuple((name, "0.333333") for name in "abc"))
    arms = [split.assign(f"s{n}").arm for n in range(30_000)]
    assert chisquare([arms.count(name) for name in "abc"]).pvalue > 0.001


def test_an_override_beats_the_draw_and_the_ramp_and_is_not_counted():
    drawn = Split("s", HALVES).assign("tester")
    other = next(name for name, _ in HALVES if name != drawn.arm)
    found = Split("s", HALVES, ramp=0, overrides=(("tester", other),)).assign("tester")
    assert found == Assignment(other, is_override=True)
    assert found.is_exposed
    assert not found.is_counted
    assert drawn.is_counted


def test_a_request_without_a_subject_is_drawn_for_itself_and_not_counted():
    split = Split("s", HALVES, overrides=(("r1", "control"),))
    found = [split.assign_request(f"r{n}") for n in range(10_000)]
    assert {one.unit for one in found} == {Unit.REQUEST}
    assert not any(one.is_counted or one.is_override for one in found)
    arms = [one.arm for one in found]
    assert chisquare([arms.count("control"), arms.count("treatment")]).pvalue > 0.001
    as_subjects = [split.assign(f"r{n}").arm for n in range(10_000)]
    same = sum(a == b for a, b in zip(arms, as_subjects, strict=True))
    assert chisquare([same, 10_000 - same]).pvalue > 0.001


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arms": (("a", "0.5"), ("b", "0.4"))}, "sum to 0.9"),
        ({"arms": ()}, "sum to 0"),
        ({"arms": (("a", "0"),)}, "sum to 0"),
        ({"arms": (("a", "0.5"), ("a", "0.5"))}, "different names"),
        ({"arms": (("a", "1.5"), ("b", "-0.5"))}, "between 0 and 1"),
        ({"arms": (("a", "half"), ("b", "0.5"))}, "no number"),
        ({"arms": (("a", float("nan")), ("b", "0.5"))}, "between 0 and 1"),
        ({"arms": (("a", "1e-999999999"), ("b", "1"))}, "decimals"),
        ({"ramp": 30}, "the ramp is 30"),
        ({"ramp": float("inf")}, "the ramp is inf"),
        ({"salt": ""}, "salt"),
        ({"salt": "\ud800"}, "Unicode"),
        ({"overrides": (("me", "d"),)}, "arm 'd', which does not exist"),
        ({"overrides": (("me", "a"), ("me", "b"))}, "twice"),
    ],
)
def test_a_bad_split_is_refused(fields, message):
    with pytest.raises(InvalidRequestError, match=message):
        Split(**{"salt": "s", "arms": THREE, **fields})


@pytest.mark.parametrize(("subject", "message"), [("", "leave it out"), ("\ud800", "Unicode")])
def test_a_bad_subject_is_refused(subject, message):
    with pytest.raises(InvalidRequestError, match=message):
        Split("s", THREE).assign(subject)


def test_limits_are_not_rounded():
    """A float of 0.1 * 3 is above 0.3: as limits they would disagree about some subject."""
    whole = Split("s", TEN)
    joined = Split("s", (("arm0", "0.3"), ("arm9", "0.7")))
    for n in range(20_000):
        is_first = whole.assign(f"s{n}").arm in ("arm0", "arm1", "arm2")
        assert (joined.assign(f"s{n}").arm == "arm0") is is_first
