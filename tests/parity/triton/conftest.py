"""Kernels of a GPU under vLLM, in Triton's interpreter on the CPU.

`test_device_tables.py` runs this directory in a process of its own, where the interpreter was
chosen before triton is imported.
"""

import pytest
import triton


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to that process what only it can run."""
    for item in items:
        if "parity/triton" in item.path.as_posix() and not triton.knobs.runtime.interpret:
            item.add_marker(pytest.mark.skip("needs TRITON_INTERPRET=1; see conftest.py"))
