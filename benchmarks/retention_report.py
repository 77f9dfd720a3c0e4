"""The retention benchmark's table, plot, and comparisons of two schemes."""

from collections.abc import Callable, Mapping, Sequence
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
Rates = Mapping[str, Mapping[str, float]]
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
    return sorted(made, key=_most_bytes)


def _most_bytes(row: Row) -> float:
    return -float(row["stored_share"])


def _row(
    scheme: str, coded: Sequence[Mapping[str, Any]], own: Answers, checkpoint_bytes: int
) -> Row:
    right = [one["right"] for one in coded]
    retention, low, high = _paired(np.divide, right, [own["own"][one["task"]] for one in coded])
    stored = float(np.mean([one["stored_bytes"] for one in coded])) / checkpoint_bytes
    resident = float(np.mean([one["resident_bytes"] for one in coded])) / checkpoint_bytes
    return {
        "scheme": scheme,
        "score": float(np.mean([np.mean(answers) for answers in right])),
        "retention": retention,
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


def compared(coded: Sequence[Mapping[str, Any]], first: str, second: str) -> Row:
    """By how much the first scheme's score exceeds the second's, averaged over tasks."""
    pair = [[one["right"] for one in coded if one["scheme"] == name] for name in (first, second)]
    difference, low, high = _paired(np.subtract, *pair)
    return {
        "schemes": [first, second],
        "num_answers": sum(map(len, pair[0])),
        "difference": difference,
        "difference_low": low,
        "difference_high": high,
    }


def sentence(comparison: Row) -> str:
    """What `compared` found, in percentage points."""
    first, second = comparison["schemes"]
    return (
        f"`{first}` scores {100 * comparison['difference']:+.1f} points against `{second}`, 95 % "
        f"interval {100 * comparison['difference_low']:+.1f} to "
        f"{100 * comparison['difference_high']:+.1f} (paired bootstrap over "
        f"{comparison['num_answers']:,} answers)."
    )


def _paired(
    relation: Callable[[Any, Any], Any],
    first: Sequence[Sequence[bool]],
    second: Sequence[Sequence[bool]],
) -> tuple[float, float, float]:
    """How two scores of each task relate, averaged over tasks, and the central 95 % of that.

    The interval is under `NUM_DRAWS` redraws of each task's prompts, the same for both scores.
    """
    draw = np.random.default_rng(SEED)
    found, redrawn = 0.0, np.zeros(NUM_DRAWS)
    for one, other in zip(map(np.array, first), map(np.array, second), strict=True):
        chosen = draw.integers(0, len(one), (NUM_DRAWS, len(one)))
        found += float(relation(one.mean(), other.mean())) / len(first)
        redrawn += relation(one[chosen].mean(axis=1), other[chosen].mean(axis=1)) / len(first)
    low, high = np.quantile(redrawn, [0.025, 0.975])
    return found, float(low), float(high)


def table(made: Sequence[Row], own: Rates) -> str:
    """The rows as Markdown, with the base's and the fine-tunes' own scores above them."""
    scores = {who: np.mean(list(own[who].values())) for who in own}
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


def publish(records: Sequence[Row], schemes: Sequence[str], docs: Path = DOCS) -> None:
    """Put the newest row of each of `schemes` on the test split into retention.{md,png}.

    The table goes between its marks; records are in the order of their time. Those without a split
    are of the test split.
    """
    tested = [record for record in records if record.get("split", "test") == "test"]
    newest = {row["scheme"]: row for record in tested for row in record["rows"]}
    made = [newest[scheme] for scheme in schemes if scheme in newest]
    made.sort(key=_most_bytes)
    page = docs / "retention.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    filled = f"{before}{START}\n{table(made, tested[-1]['own'])}\n{END}{after}"
    page.write_text(filled, encoding="utf-8")
    draw_plot(made, docs / "retention.png")


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
