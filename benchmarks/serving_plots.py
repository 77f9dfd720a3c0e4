"""The plots of the serving benchmark."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

Line = Mapping[str, Any]


def draw_rates(lines: Sequence[Line], labels: Mapping[tuple[str, str], str], path: Path) -> None:
    """Tokens per second of every server and workload, one panel a setting of cores."""
    rates = [line for line in lines if line["kind"] == "Rate"]
    settings = list(dict.fromkeys(line["cores"] for line in rates))
    figure, panels = plt.subplots(
        1, len(settings), figsize=(12, 4.5), layout="constrained", sharey=True, squeeze=False
    )
    for cores, axes in zip(settings, panels[0], strict=True):
        shown = [line for line in rates if line["cores"] == cores]
        names = [labels[line["server"], line["workload"]] for line in shown]
        colours = ["tab:blue" if line["server"] == "taskmix" else "tab:grey" for line in shown]
        middle = [line["tokens_per_s"]["p50"] for line in shown]
        bars = axes.barh(names, middle, xerr=_errors(shown), color=colours, capsize=3)
        axes.bar_label(bars, fmt="%.0f", padding=4, fontsize=8)
        axes.set_xlabel(f"tokens/s ({cores} cores)")
        axes.margins(x=0.15)
    panels[0][0].invert_yaxis()
    _save(figure, path)


def draw_growth(lines: Sequence[Line], path: Path) -> None:
    """Tokens per second against tasks in use and against registered mixes."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    kinds = {"TaskStage": "num_tasks", "MixStage": "num_mixes"}
    labels = ("tasks loaded and used", "mixes registered")
    for axes, (kind, count), label in zip(panels, kinds.items(), labels, strict=True):
        shown = sorted((line for line in lines if line["kind"] == kind), key=lambda one: one[count])
        counts = [line[count] for line in shown]
        middle = [line["tokens_per_s"]["p50"] for line in shown]
        axes.errorbar(counts, middle, yerr=_errors(shown), fmt="o-", capsize=3)
        axes.set_xscale("log", base=2 if kind == "TaskStage" else 10)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(label)
        axes.set_ylabel("tokens/s")
        axes.grid(alpha=0.3)
    _save(figure, path)


def _errors(shown: Sequence[Line]) -> list[list[float]]:
    """From the median down to the 20th and up to the 80th percentile."""
    rates = [line["tokens_per_s"] for line in shown]
    return [
        [rate["p50"] - rate["p20"] for rate in rates],
        [rate["p80"] - rate["p50"] for rate in rates],
    ]


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=120)
    plt.close(figure)
