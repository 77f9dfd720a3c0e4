"""The report of what fine-tunes keep: paired comparisons, and which rows the page shows."""

import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks.retention import main
from benchmarks.retention_report import END, START, compared, publish, rows, sentence

SIZE = 400


def coded(scheme, answers, stored_bytes=50.0):
    """What the benchmark measures of a scheme; `answers` by task."""
    return [
        {
            "scheme": scheme,
            "task": task,
            "stored_bytes": stored_bytes,
            "resident_bytes": 2 * stored_bytes,
            "relative_l2": 0.5,
            "right": right,
        }
        for task, right in answers.items()
    ]


def record(scheme, share, **fields):
    own = {"own": {"a": (True,) * 4}, "base": {"a": (False,) * 4}}
    right = (True,) * round(4 * share) + (False,) * round(4 - 4 * share)
    made = rows(coded(scheme, {"a": right}), own, 1000)
    return {"own": {"own": {"a": 1.0}, "base": {"a": 0.0}}, "rows": made, **fields}


def test_a_difference_counts_every_task_alike():
    first = coded("x", {"a": (True, True, False, False), "b": (True,) * 10})
    second = coded("y", {"a": (True, False, False, False), "b": (True,) * 5 + (False,) * 5})
    found = compared([*first, *second], "x", "y")
    assert found["schemes"] == ["x", "y"]
    assert found["num_answers"] == 14
    assert found["difference"] == pytest.approx((0.25 + 0.5) / 2)
    swapped = compared([*first, *second], "y", "x")
    assert swapped["difference"] == -found["difference"]
    assert swapped["difference_low"] == pytest.approx(-found["difference_high"])
    assert "`x` scores +37.5 points against `y`, 95 % interval " in sentence(found)
    assert "14 answers" in sentence(found)


def test_the_interval_of_a_difference_is_paired():
    """Prompts that both answer alike add nothing to it."""
    one_in_ten = tuple(index % 10 == 0 for index in range(SIZE))
    half = tuple(index % 2 == 1 for index in range(SIZE))
    both = tuple(one or other for one, other in zip(one_in_ten, half, strict=True))
    same = compared([*coded("x", {"a": half}), *coded("y", {"a": half})], "x", "y")
    assert same["difference_low"] == same["difference_high"] == 0.0
    found = compared([*coded("x", {"a": both}), *coded("y", {"a": half})], "x", "y")
    half_width = 1.96 * math.sqrt(0.1 * 0.9 / SIZE)
    # a prompt more or less on either side
    assert found["difference_low"] == pytest.approx(0.1 - half_width, abs=1 / SIZE)
    assert found["difference_high"] == pytest.approx(0.1 + half_width, abs=1 / SIZE)


def test_retention_is_a_share_of_the_own_score_with_a_paired_interval():
    right = (True, False, True, False) * 25
    own = {"own": {"a": right, "b": (True,) * 100}, "base": {}}
    (made,) = rows(coded("x", {"a": right, "b": (True,) * 50 + (False,) * 50}), own, 1000)
    assert made["score"] == pytest.approx(0.5)
    assert made["retention"] == pytest.approx((1.0 + 0.5) / 2)
    # the first task's ratio is 1 in every draw; the second's has a standard error of 0.05
    assert made["retention_low"] == pytest.approx(0.75 - 0.049, abs=0.01)
    assert made["retention_high"] == pytest.approx(0.75 + 0.049, abs=0.01)


def test_the_page_shows_the_newest_test_row_of_each_scheme(tmp_path: Path):
    page = tmp_path / "retention.md"
    page.write_text(f"before\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    records = [
        record("tall", 0.25),  # written before there were splits: the test split's
        record("int4", 1.0, split="test"),
        record("tall", 0.75, split="test"),
        record("tall", 0.5, split="validation"),
        record("trial", 0.5, split="test"),
    ]
    publish(records, ("int4", "tall", "never measured"), tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{START}\nMean score over 1 tasks: base 0.0%")
    assert text.endswith(f"\n{END}\nafter\n")
    table = [line for line in text.splitlines() if line.startswith("| `")]
    assert [line.split(" | ")[:3] for line in table] == [
        ["| `int4`", "100.0%", "100.0%"],
        ["| `tall`", "75.0%", "75.0%"],
    ]
    assert (tmp_path / "retention.png").stat().st_size > 0


def test_a_comparison_names_its_schemes_itself():
    refused = CliRunner().invoke(main, ["--compare", "int4", "int2", "--scheme", "int8"])
    assert refused.exit_code == 2
    assert "leave --scheme out" in refused.output
