"""The kernels' tests in Triton's interpreter, which a process has to choose before importing it."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.__main__ import main
from tests.support.interpreted import interpreted

TESTS = Path(__file__).parent / "triton"
FILES = sorted(path.name for path in TESTS.glob("test_*.py"))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FILES)
def test_through_the_interpreter(name: str) -> None:
    done = interpreted("pytest", "--quiet", "--no-header", str(TESTS / name))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


@pytest.mark.timeout(120)
def test_the_benchmark_runs_in_small() -> None:
    done = interpreted("benchmarks.gpu", "--smoke")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {line["kind"] for line in lines} == {"copy", "operation", "step", "mixes"}
    operations = {line["operation"] for line in lines if line["kind"] == "operation"}
    assert operations == {
        "products", "composed", "weights", "weights-out", "lookups", "lowrank",
    }  # fmt: skip


def test_the_benchmark_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    with pytest.raises(SystemExit, match="No GPU here"):
        main()
