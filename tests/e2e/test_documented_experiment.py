"""docs/experiments.md as its reader types it, on the demo's bank: from two mixes to a decision."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskmix_server.settings import default_cache
from tests.support.documented import Step, steps
from tests.support.served import Served, serving

STEPS = steps("experiments.md", "From two mixes to a decision")
ROOT = Path(__file__).parents[2]
LONGEST_S = 600.0
SAID = (
    *("taskmix mixes", "taskmix experiments create", "taskmix experiments start"),
    *("taskmix experiments ramp", "taskmix experiments promote", "taskmix experiments rollback"),
)
"""What prints the same whenever it is typed, but for numbers."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = default_cache() / "models"
    if not (models / "bank-int4").exists():
        pytest.skip("`make demo` makes the models that the page is about")
    state = tmp_path_factory.mktemp("tour")
    flags = ("--max-model-len", "1024", "--kv-cache-memory", str(2**30))
    with serving(models / "base", models / "bank-int4", state, *flags) as server:
        yield server


def typed(served: Served, line: str, directory: Path) -> str:
    """Run a line of the page in a shell, against the server on its ports."""
    line = line.replace("http://127.0.0.1:8000", served.http)
    if "examples.experiment" in line:
        line = f"{line.strip()} --server {served.grpc} --url {served.http}"
    settings = {
        "PATH": f"{Path(sys.executable).parent}:$PATH",
        "PYTHONPATH": str(ROOT),
        "TASKMIX_SERVER": served.grpc,
    }
    exported = " ".join(f"{name}={value}" for name, value in settings.items())
    ran = subprocess.run(
        ["bash", "-c", f"export {exported}\n{line}"],
        check=False,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        cwd=directory,
    )
    assert ran.returncode == 0, f"{line}\n{ran.stderr}"
    return ran.stdout


def words(text: str) -> list[str]:
    """What is printed, without what differs from one machine or time to the next."""
    return ["#" if re.search(r"[0-9]", word) else word for word in text.split()]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_from_two_mixes_to_a_decision(served: Served, tmp_path: Path) -> None:
    printed: dict[Step, str] = {}
    for step in STEPS:
        printed[step] = typed(served, step.line, tmp_path)
        if step.line.startswith(SAID):
            assert words(printed[step]) == words(step.output), step.line
    (http,) = (found for step, found in printed.items() if step.line.startswith("curl"))
    assert "x-taskmix-arm: strength@1/stronger" in http
    last = [text for step, text in printed.items() if "experiments results" in step.line][-1]
    (decisive,) = re.findall(r"^right/right.count +stronger .* (\S+)$", last, re.MULTILINE)
    assert float(decisive) < 0.05
    assert (tmp_path / "experiment.png").stat().st_size > 0
    (audited,) = (text for step, text in printed.items() if "audit" in step.line)
    assert "experiments.rollback" in audited
