"""Kernels run in Triton's interpreter on the CPU, or, compiled, on a GPU.

The interpreter has to be chosen before triton is imported, and this process may already have
imported it: `test_triton_interpreted.py` therefore runs this directory in a process of its own.
Otherwise these tests need a GPU.
"""

import pytest
import torch
import triton


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `-m gpu` what the interpreter does not run."""
    if triton.knobs.runtime.interpret:
        return
    for item in items:
        if "kernels/triton" in item.path.as_posix():
            item.add_marker("gpu")


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu" if triton.knobs.runtime.interpret else "cuda")
