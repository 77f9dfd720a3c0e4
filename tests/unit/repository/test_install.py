"""What an installed environment can do, and what its parts do without."""

import subprocess
import sys
from importlib.metadata import entry_points
from importlib.util import find_spec

import pytest
import torch

BROKEN_BESIDE_CPU_TORCH = ("torchaudio", "torchcodec", "torchvision")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_transformers_models_can_be_imported() -> None:
    done = _python("from transformers import AutoTokenizer, LlamaForCausalLM")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", BROKEN_BESIDE_CPU_TORCH)
def test_packages_that_cpu_torch_breaks_are_absent(package: str) -> None:
    assert torch.version.cuda is not None or find_spec(package) is None


@pytest.mark.parametrize("module", ["taskmix_client", "taskmix_server.cli.remote"])
def test_the_base_install_is_enough_to_call_a_server(module: str) -> None:
    heavy = {"torch", "numpy", "vllm", "transformers", "sqlalchemy"}
    done = _python(f"import sys, {module}; print(*(sys.modules.keys() & {heavy}))")
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize(
    ("group", "value"),
    [
        ("console_scripts", "taskmix_server.cli:main"),
        ("vllm.general_plugins", "taskmix_server.engine.vllm.plugin:register"),
    ],
)
def test_entry_points_are_installed(group: str, value: str) -> None:
    (entry,) = entry_points(group=group, name="taskmix")
    assert entry.value == value
    assert callable(entry.load())
