"""What every test gets: a time limit by kind, and the same property examples each run."""

from pathlib import Path

import pytest
from hypothesis import settings

TESTS = Path(__file__).parent
# Seconds for the test itself, fixtures apart. A kind that is not here keeps pyproject's limit.
TIMEOUTS_S = {"integration": 300, "e2e": 300, "fuzz": 120}

settings.register_profile("taskmix", deadline=None, derandomize=True, database=None)
settings.load_profile("taskmix")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give each test the limit of its kind, unless it sets its own."""
    for item in items:
        kind = item.path.relative_to(TESTS).parts[0]
        if kind in TIMEOUTS_S and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TIMEOUTS_S[kind], func_only=True))
