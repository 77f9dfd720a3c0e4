"""The serving benchmark's tables, from lines as a run records them."""

from dataclasses import asdict

import pytest

from benchmarks import serving_report
from benchmarks.growth import Memory, MixStage, TaskStage
from benchmarks.latency import Latency
from benchmarks.rounds import Rate
from benchmarks.serving_report import ROWS, STOCK, TARGETS, Rates, tables

MACHINE = {
    "time": "2026-01-02T03:04:05+00:00",
    "commit": "0123456789abcdef",
    "is_dirty": 0,
    "cpu": "A CPU",
    "num_cpus": 2,
    "python": "3.11",
    "torch": "2",
    "vllm": "0",
    "scheme": "int4",
}
MEMORY = Memory(tasks_bytes=74e6, front_bytes=500_000_000, engine_bytes=3_000_000_000)


def spread(middle):
    return {"p20": middle - 1.0, "p50": middle, "p80": middle + 1.0}


def rate(server, workload, tokens_per_s, cores="all"):
    return Rate(
        server=server,
        cores=cores,
        workload=workload,
        tokens_per_s=spread(tokens_per_s),
        start_s=20.0,
    )


MEASUREMENTS = [
    rate("stock", "idle", 500.0, "default"),
    rate("stock", "idle", 800.0),
    rate("swaps", "sixteen_mixes", 100.0),
    rate("adapters", "adapters", 400.0),
    rate("taskmix", "idle", 784.0),
    rate("taskmix", "one_mix", 700.0),
    rate("taskmix", "sixteen_mixes", 600.0),
    Latency(
        server="taskmix",
        cores="all",
        num_streams=128,
        ttft_ms={"p50": 100.0, "p99": 200.0},
        gap_ms={"p50": 20.0, "p99": 40.0},
        num_loads=7,
        load_s=spread(1.5),
    ),
    TaskStage(cores="all", num_tasks=32, tokens_per_s=spread(300.0), memory=MEMORY),
    TaskStage(cores="all", num_tasks=1, tokens_per_s=spread(650.0), memory=MEMORY),
    MixStage(
        cores="all",
        num_mixes=10_000,
        registered_per_s=500.0,
        tokens_per_s=spread(590.0),
        memory=MEMORY,
    ),
]
LINES = [{**MACHINE, "kind": type(one).__name__, **asdict(one)} for one in MEASUREMENTS]


def in_turns(server, workload, turns):
    line = asdict(rate(server, workload, 1.0))
    return {**MACHINE, "kind": "Rate", **line, "turns": turns}


def row(text, start):
    """The cells of the first table row that starts with `start`."""
    found = next(line for line in text.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_a_rate_stands_beside_its_share_of_stock_under_the_same_cores():
    cells = row(tables(LINES), ROWS["taskmix", "sixteen_mixes"])
    assert cells[1:] == ["not measured", "", "", "600 (599 to 601)", "0.75", "20"]


def test_a_target_is_met_from_its_value_on():
    text = tables(LINES)
    assert row(text, "bank idle, of the base")[1:] == ["≥ 0.98", "not measured", "0.98, met"]
    assert row(text, "one mix, of the base")[1:] == ["≥ 0.9", "not measured", "0.88, missed"]
    assert row(text, "16 mixes, 64 pairs, of multi-LoRA")[3] == "1.50, met"
    assert row(text, "16 mixes, 64 pairs, of swaps")[3] == "6.00, met"
    assert row(text, "16 mixes, 48 pairs, of the base")[3] == "not measured"


def test_every_target_compares_what_has_a_row():
    for target in TARGETS:
        assert {target.measured, target.against} <= ROWS.keys()


def test_a_ratio_never_mixes_settings_of_cores():
    assert Rates(LINES).ratio(("taskmix", "idle"), STOCK, "default") is None


def test_streams_and_growth_have_their_tables():
    text = tables(LINES)
    assert "| 128 | 100 | 200 | 20 | 40 | 7 | 1.50 |" in text
    assert text.index("| 1 | 650 (649 to 651) | 74 | 3,000 |") < text.index("| 32 | 300 (299")
    assert "| 10,000 | 590 (589 to 591) | 500 | 500 | 3,000 |" in text


def test_what_stands_around_the_marks_stays_and_plots_are_drawn(tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(f"before\n{serving_report.START}\nold\n{serving_report.END}\nafter\n")
    serving_report.publish(LINES, tmp_path)
    text = page.read_text()
    assert text.startswith(f"before\n{serving_report.START}\n")
    assert text.endswith(f"{serving_report.END}\nafter\n")
    assert "old" not in text
    assert "commit 0123456789ab: 2 cores of A CPU" in text
    drawn = {path.name for path in tmp_path.glob("*.png") if f"({path.name})" in text}
    assert drawn == {"performance.png", "growth.png"}


@pytest.mark.parametrize("is_dirty", [0, 1])
def test_a_run_says_whether_its_commit_is_what_ran(is_dirty):
    assert ("not committed" in serving_report.machine({**MACHINE, "is_dirty": is_dirty})) == (
        is_dirty == 1
    )


def test_servers_that_took_turns_are_compared_turn_by_turn():
    slowed = [
        in_turns("stock", "idle", [800.0, 400.0]),
        in_turns("taskmix", "idle", [720.0, 360.0]),
    ]
    assert Rates(slowed).ratio(("taskmix", "idle"), STOCK, "all") == pytest.approx(0.9)


def test_only_the_settings_of_cores_that_were_measured_have_columns():
    lines = [line for line in LINES if line["cores"] == "all"]
    assert row(tables(lines), "served") == ["served", "tokens/s, all cores", "of stock", "start, s"]
    assert row(tables(lines), "tokens/s") == ["tokens/s", "target", "all cores"]
