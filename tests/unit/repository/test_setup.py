"""`make setup`: what it installs, in which order, and that it does it once."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Stands for python3 and, inside the new environment, for pip. It notes how it was called, and
# fails on the first registry when the test says that torch's CPU build is not there.
FAKE = """#!/bin/sh
case "$*" in
    "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/pip"; cp "$0" "$3/bin/python"; exit;;
esac
echo "$*" >> "$CALLS"
case "$* $TORCH_IS_ELSEWHERE" in
    *--extra-index-url*) exit 0;;
    *"torch==2.13.0+cpu yes") exit 1;;
esac
"""
# Stand for Debian's tools: a package that has promtool in it.
APT_GET = """#!/bin/sh
case "$*" in *"download prometheus") touch prometheus_2.deb;; esac
"""
DPKG_DEB = """#!/bin/sh
mkdir -p "$3/usr/bin"; echo "out of $(basename "$2")" > "$3/usr/bin/promtool"
"""
# All that the recipe calls: with nothing else to be found, promtool is missing on any machine.
TOOLS = ("basename", "cat", "cp", "grep", "make", "mkdir", "mktemp", "rm", "sh", "touch")
Setup = Callable[..., tuple[str, list[str]]]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    """Run make's setup in a checkout of its own; gives its output and pip's arguments."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    fake = write_script(tmp_path / "fake-python", FAKE)
    write_script(tmp_path / "bin" / "promtool", "#!/bin/sh\n")
    for tool in TOOLS:
        (tmp_path / "bin" / tool).symlink_to(str(shutil.which(tool)))

    def run(engine: str = "server-cpu", torch_is_elsewhere: str = "no") -> tuple[str, list[str]]:
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {
            "PATH": f"{tmp_path}/bin",
            "CALLS": str(calls),
            "TORCH_IS_ELSEWHERE": torch_is_elsewhere,
        }
        command = ["make", "setup", f"PYTHON={fake}", f"ENGINE={engine}"]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        return done.stdout, calls.read_text().splitlines()

    return run


def write_script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_promtool_comes_out_of_its_package_where_it_is_not_installed(
    setup: Setup, tmp_path: Path
) -> None:
    (tmp_path / "bin" / "promtool").unlink()
    write_script(tmp_path / "bin" / "apt-get", APT_GET)
    write_script(tmp_path / "bin" / "dpkg-deb", DPKG_DEB)
    setup()
    assert (tmp_path / ".venv" / "bin" / "promtool").read_text() == "out of prometheus_2.deb\n"


def test_setup_goes_on_without_promtool(setup: Setup, tmp_path: Path) -> None:
    (tmp_path / "bin" / "promtool").unlink()
    write_script(tmp_path / "bin" / "apt-get", "#!/bin/sh\nexit 100\n")
    assert "promtool is missing" in setup()[0]


def test_the_second_setup_does_nothing(setup: Setup) -> None:
    _, first = setup()
    output, second = setup()
    assert len(first) == 4
    assert second == []
    assert len(output.splitlines()) <= 1


def test_a_newer_pyproject_installs_again(setup: Setup, tmp_path: Path) -> None:
    _, first = setup()
    os.utime(tmp_path / ".venv" / ".installed-server-cpu", (0, 0))
    assert setup()[1] == first


def test_cpu_torch_comes_first_and_what_it_breaks_goes_last(setup: Setup) -> None:
    torch, everything, weights, removed = setup()[1]
    assert torch.endswith(" torch==2.13.0+cpu")
    assert "--extra-index-url" not in torch
    assert everything.endswith(".[server-cpu,examples,dev]")
    assert "--no-deps" in weights
    assert " uninstall " in removed
    assert removed.endswith("torchaudio torchcodec torchvision")


def test_cpu_torch_is_sought_elsewhere_when_the_registry_lacks_it(setup: Setup) -> None:
    first, second, *_ = setup(torch_is_elsewhere="yes")[1]
    assert first.endswith(" torch==2.13.0+cpu")
    assert "--extra-index-url" in second
    assert second.endswith(" torch==2.13.0+cpu")


def test_another_engine_is_another_setup(setup: Setup) -> None:
    setup(engine="server-cpu")
    assert setup(engine="server")[1] != []


def test_a_gpu_machine_keeps_the_engines_own_torch(setup: Setup) -> None:
    everything, weights = setup(engine="server")[1]
    assert everything.endswith(".[server,examples,dev]")
    assert "--no-deps" in weights
