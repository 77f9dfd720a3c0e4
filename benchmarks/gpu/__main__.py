"""Measure the device operations, if they are right: `python -m benchmarks.gpu`.

Needs Python with torch, triton, numpy, safetensors and pytest. Appends JSON lines to
results/gpu.jsonl; `--smoke` runs everything in small, in Triton's interpreter where there is no
GPU, and keeps nothing.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton

from benchmarks.gpu import operations, step
from benchmarks.gpu.record import RESULTS, append
from benchmarks.gpu.timing import Clock, copy_bandwidth
from benchmarks.gpu.workload import FULL, SMOKE
from taskmix_composer.kernels.ops import select

ROOT = Path(__file__).parents[2]
TESTS = "tests/oracle/kernels/triton"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, nothing kept")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.jsonl")
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    if options.smoke:
        with tempfile.TemporaryDirectory() as folder:
            run(Path(folder) / "gpu.jsonl", options.seed, is_small=True)
        return
    if not torch.cuda.is_available():
        sys.exit("No GPU here. On a machine with one run this again; --smoke shows that it runs.")
    gate()
    run(options.out, options.seed, is_small=False)
    print(f"appended to {options.out}")


def gate() -> None:
    """Stop unless every operation is right on this device."""
    arguments = ["-c", "benchmarks/gpu/pytest.ini", "--rootdir", ".", "--confcutdir", TESTS]
    command = [sys.executable, "-m", "pytest", "--quiet", *arguments, TESTS]
    done = subprocess.run(command, cwd=ROOT, check=False)  # noqa: S603 - fixed
    if done.returncode != 0:
        sys.exit("The kernels' tests failed on this device; nothing was measured.")


def run(path: Path, seed: int, *, is_small: bool) -> None:
    """Every measurement, one line each."""
    scale = SMOKE if is_small else FULL
    is_interpreted = bool(triton.knobs.runtime.interpret)
    if not is_interpreted and not torch.cuda.is_available():
        sys.exit("No GPU here: set TRITON_INTERPRET=1 for a smoke run in the interpreter.")
    clock = Clock(torch.device("cpu" if is_interpreted else "cuda"), scale.num_replays)
    bandwidth = copy_bandwidth(clock, scale.copy_bytes)
    append(path, seed, {"kind": "copy", "bytes_per_s": bandwidth})
    ops = select("triton")
    for measurement in operations.measure(ops, clock, scale, bandwidth):
        append(path, seed, measurement)
    for measurement in step.measure(ops, clock, scale, bandwidth):
        append(path, seed, measurement)
    for measurement in step.mixes(ops, clock, scale):
        append(path, seed, measurement)


if __name__ == "__main__":
    main()
