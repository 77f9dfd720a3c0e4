"""The retention benchmark's table and plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

DOCS = Path(__file__).parent.parent / "docs"
NUM_DRAWS = 10_000
SEED = 0
START, END = "<!-- table -->", "<!-- end of table -->"

Answers = Mapping[str, Mapping[str, tuple[bool, ...]]]
Row = dict[str, Any]


def rows(coded: Sequence[Mapping[str, Any]], own: Answers, checkpoint_bytes: int) -> list[Row]:
    """One row per scheme, means over the tasks, the most bytes first.

    Retention is a scheme's score over the fine-tune's own, averaged over tasks; its interval is a
    paired bootstrap: prompts are drawn anew within each task, the same for both.
    """
    schemes = dict.fromkeys(one["scheme"] for one in coded)
    made = [
        _row(scheme, [one for one in coded if one["scheme"] == scheme], own, checkpoint_bytes)
        for scheme in schemes
    ]
    return sorted(made, key=lambda row: -row["stored_share"])


def _row(
    scheme: str, coded: Sequence[Mapping[str, Any]], own: Answers, checkpoint_bytes: int
) -> Row:
    scheme_right = [np.array(one["right"]) for one in coded]
    own_right = [np.array(own["own"][one["task"]]) for one in coded]
    low, high = _interval(scheme_right, own_right)
    stored = float(np.mean([one["stored_bytes"] for one in coded])) / checkpoint_bytes
    resident = float(np.mean([one["resident_bytes"] for one in coded])) / checkpoint_bytes
    return {
        "scheme": scheme,
        "score": float(np.mean([right.mean() for right in scheme_right])),
        "retention": _retention(scheme_right, own_right),
        "retention_low": low,
        "retention_high": high,
        "stored_share": stored,
        "bits_per_parameter": 16 * stored,
        "resident_share": resident,
        "relative_l2": float(np.mean([one["relative_l2"] for one in coded])),
        "by_task": {
            one["task"]: {
                "score": float(np.mean(one["right"])),
                "stored_share": one["stored_bytes"] / checkpoint_bytes,
                "relative_l2": one["relative_l2"],
            }
            for one in coded
        },
    }


def _retention(scheme_right: Sequence[Any], own_right: Sequence[Any]) -> float:
    pairs = zip(scheme_right, own_right, strict=True)
    return float(np.mean([scheme.mean() / own.mean() for scheme, own in pairs]))


def _interval(scheme_right: Sequence[Any], own_right: Sequence[Any]) -> tuple[float, float]:
    """The central 95 % of retention under `NUM_DRAWS` redraws of the prompts."""
    draw = np.random.default_rng(SEED)
    ratios = np.zeros(NUM_DRAWS)
    for scheme, own in zip(scheme_right, own_right, strict=True):
        chosen = draw.integers(0, len(own), (NUM_DRAWS, len(own)))
        ratios += scheme[chosen].mean(axis=1) / own[chosen].mean(axis=1)
    low, high = np.quantile(ratios / len(own_right), [0.025, 0.975])
    return float(low), float(high)


def table(made: Sequence[Row], own: Answers) -> str:
    """The rows as Markdown, with the base's and the fine-tunes' own scores above them."""
    scores = {who: np.mean([np.mean(right) for right in own[who].values()]) for who in own}
    lines = [
        f"Mean score over {len(own['own'])} tasks: base {scores['base']:.1%}, fine-tunes "
        f"{scores['own']:.1%}.",
        "",
        "| scheme | score | retention | 95 % interval | of bf16 bytes, on disk | resident | "
        "bits per parameter | relative L2 error |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row['scheme']}` | {row['score']:.1%} | {row['retention']:.1%} | "
        f"{row['retention_low']:.1%} to {row['retention_high']:.1%} | {row['stored_share']:.2%} | "
        f"{row['resident_share']:.2%} | {row['bits_per_parameter']:.2f} | "
        f"{row['relative_l2']:.3f} |"
        for row in made
    ]
    return "\n".join(lines)


def publish(made: Sequence[Row], own: Answers) -> None:
    """Put the table into docs/retention.md, between its marks, and draw docs/retention.png."""
    page = DOCS / "retention.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n{table(made, own)}\n{END}{after}", encoding="utf-8")
    draw_plot(made, DOCS / "retention.png")


def draw_plot(made: Sequence[Row], path: Path) -> None:
    """Retention with its interval against bytes on disk."""
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    shares = [100 * row["stored_share"] for row in made]
    values = [100 * row["retention"] for row in made]
    below = [100 * (row["retention"] - row["retention_low"]) for row in made]
    above = [100 * (row["retention_high"] - row["retention"]) for row in made]
    axes.errorbar(shares, values, yerr=[below, above], fmt="o", capsize=3)
    for row, share, value in zip(made, shares, values, strict=True):
        axes.annotate(
            row["scheme"], (share, value), xytext=(5, 5), textcoords="offset points", fontsize=8
        )
    axes.axhline(99, linestyle=":", color="grey")
    axes.axvline(6, linestyle=":", color="grey")
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("bytes on disk per task, % of the bfloat16 checkpoint")
    axes.set_ylabel("score kept, % of the fine-tune's own")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)
