"""What is kept of a run."""

import json

from benchmarks import record


def test_percentiles_lie_within_the_values():
    assert record.spread([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]) == {"p20": 2.0, "p50": 3.5, "p80": 5.0}
    assert record.tail([float(value) for value in range(101)]) == {"p50": 50.0, "p99": 99.0}
    assert record.tail([3.0, 3.0]) == {"p50": 3.0, "p99": 3.0}


def test_the_last_run_is_every_line_of_the_latest_time(tmp_path):
    lines = [{"time": "1", "n": 0}, {"time": "2", "n": 1}, {"time": "2", "n": 2}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert record.last_run("x", tmp_path) == lines[1:]


def test_the_lines_of_one_process_are_one_run(tmp_path):
    record.append("x", {"n": 1}, tmp_path)
    record.append("x", {"n": 2}, tmp_path)
    found = record.last_run("x", tmp_path)
    assert [line["n"] for line in found] == [1, 2]
    assert len({line["is_dirty"] for line in found}) == 1
