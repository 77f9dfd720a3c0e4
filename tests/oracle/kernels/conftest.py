"""What the kernels' tests get."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def num_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread, or as many as a test asks for: small matrices gain nothing by more."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", 1))
    yield
    torch.set_num_threads(before)
