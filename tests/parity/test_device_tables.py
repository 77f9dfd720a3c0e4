"""An engine with Triton's kernels, in a process that interprets them; see `triton/`."""

from pathlib import Path

import pytest

from tests.support.interpreted import interpreted

TESTS = Path(__file__).parent / "triton"


@pytest.mark.timeout(600)
def test_through_the_interpreter() -> None:
    done = interpreted("pytest", "--quiet", "--no-header", str(TESTS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout
