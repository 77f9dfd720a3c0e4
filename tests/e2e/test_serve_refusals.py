"""Starts that cannot succeed end at once, with a sentence and exit code 1."""

import subprocess
from pathlib import Path

from tests.support.models import make_models
from tests.support.served import FLAGS, TASKMIX
from tests.support.tiny import TinyModel, make_base


def test_a_bank_of_another_base(tmp_path: Path) -> None:
    models = make_models(tmp_path / "models")
    other = make_base(tmp_path / "other-base", TinyModel(seed=9))
    command = [*TASKMIX, "serve", "--base", other, "--bank", models.bank, *FLAGS]
    ran = subprocess.run(
        [*command, "--state", tmp_path / "state"],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert "other-base" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert "bank" in ran.stderr.splitlines()[-1]
