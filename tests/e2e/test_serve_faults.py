"""A server that is stopped before it is ready."""

import subprocess
from pathlib import Path

import psutil
import pytest

from tests.support.models import Models, make_models
from tests.support.served import FLAGS, TASKMIX
from tests.support.waiting import all_gone, eventually

GONE_S = 30.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


def test_stopped_while_it_starts(models: Models, tmp_path: Path) -> None:
    command = [*TASKMIX, "serve", "--base", models.base, "--bank", models.bank, *FLAGS]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--state", tmp_path / "state"], stdout=subprocess.PIPE, stderr=log
        )
    front = psutil.Process(process.pid)
    eventually(lambda: bool(front.children()), within_s=60)
    engine = front.children(recursive=True)
    process.terminate()
    assert process.wait(timeout=10) == 0
    eventually(lambda: all_gone(engine), within_s=GONE_S)
    remainder, _ = process.communicate(timeout=10)
    assert remainder == b"", "it never said that it was ready"
