"""Modules in a process that has chosen Triton's interpreter before it imports triton."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def interpreted(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m` with these arguments at the project's root."""
    chosen = ["env", "TRITON_INTERPRET=1", "OMP_NUM_THREADS=1"]
    run = [*chosen, sys.executable, "-m", *arguments]
    return subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT)
