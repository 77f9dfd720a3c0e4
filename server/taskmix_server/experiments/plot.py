"""A picture of an experiment's results: how far each arm is from the control."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from taskmix_server.errors import FailedPreconditionError, InvalidRequestError
from taskmix_server.experiments.statistics.comparison import Comparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches.
_WIDTH, _LINE_HEIGHT, _PANEL_HEIGHT = 7.0, 0.45, 1.2


@dataclass(frozen=True, slots=True)
class Panel:
    """A metric, and each arm's name and comparison with the control."""

    metric: str
    arms: Sequence[tuple[str, Comparison]]


def draw(panels: Sequence[Panel], title: str, path: Path) -> None:
    """Write a PNG: a panel a metric, a point and a bar for each arm's difference and sequence.

    An arm of which nothing can be said yet has a grey point and no bar; one whose bar leaves zero
    out is drawn in colour. Needs matplotlib, which is loaded here: nothing that serves draws.
    """
    if not panels:
        raise InvalidRequestError("there is nothing to draw; record outcomes first")
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise FailedPreconditionError(
            "plots need matplotlib; install it with: pip install matplotlib"
        ) from error
    num_lines = [len(panel.arms) for panel in panels]
    height = _PANEL_HEIGHT * len(panels) + _LINE_HEIGHT * sum(num_lines)
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=[1 + num for num in num_lines])
    for panel, place in zip(panels, axes[:, 0], strict=True):
        _draw_panel(place, panel)
    figure.suptitle(title)
    figure.savefig(path, format="png", dpi=120)


def _draw_panel(axes: "Axes", panel: Panel) -> None:
    for line, (_, found) in enumerate(panel.arms):
        colour = "tab:blue" if found.is_different else "tab:grey"
        if math.isfinite(found.difference):
            axes.plot(found.difference, line, "o", color=colour)
        if found.is_ready:
            axes.hlines(line, found.interval.low, found.interval.high, colors=colour, linewidth=2)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(panel.arms)), [_label(*arm) for arm in panel.arms])
    axes.set_ylim(len(panel.arms) - 0.5, -0.5)
    axes.set_xlabel(f"{panel.metric}: difference from the control")
    axes.grid(axis="x", alpha=0.3)


def _label(arm: str, found: Comparison) -> str:
    return arm if found.is_ready else f"{arm} (too little data)"
