"""Starts that cannot succeed end at once, with a sentence and exit code 1."""

import subprocess
from pathlib import Path

import pytest

from tests.support.models import Models, make_models
from tests.support.served import FLAGS, TASKMIX
from tests.support.tiny import TinyModel, make_base


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


def refused(base: Path, bank: Path, state: Path, *flags: str) -> str:
    """What a start that fails says; its last line is the reason."""
    command = [*TASKMIX, "serve", "--base", base, "--bank", bank, "--state", state]
    ran = subprocess.run(
        [*command, *FLAGS, *flags], check=False, capture_output=True, text=True, timeout=120
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "Traceback" not in ran.stderr
    return ran.stderr


def test_a_bank_of_another_base(models: Models, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other-base", TinyModel(seed=9))
    message = refused(other, models.bank, tmp_path / "state")
    assert "other-base" in message
    assert "bank" in message.splitlines()[-1]


def test_another_address_without_tenants(models: Models, tmp_path: Path) -> None:
    message = refused(models.base, models.bank, tmp_path / "state", "--host", "0.0.0.0")
    assert "no tenant is configured" in message
    assert "--allow-unauthenticated" in message.splitlines()[-1]
