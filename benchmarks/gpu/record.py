"""Where a measurement on a device was taken, and the file that keeps it."""

import json
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch
import triton

RESULTS = Path(__file__).parents[1] / "results"


@cache
def provenance(seed: int) -> Mapping[str, object]:
    """The commit, device and versions of this run."""
    is_cuda = torch.cuda.is_available()
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "device": torch.cuda.get_device_name() if is_cuda else platform.machine(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())) if is_cuda else "",
        "cuda": torch.version.cuda or "",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "seed": seed,
    }


def append(path: Path, seed: int, measurement: Mapping[str, object]) -> None:
    """Add one JSON line to a file, and show it without its provenance."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**provenance(seed), **measurement}) + "\n")
    print(json.dumps(measurement), flush=True)


def _commit() -> str:
    """The commit, or nothing where the sources are not a checkout."""
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - fixed
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
