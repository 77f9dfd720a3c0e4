"""A minute of mixed traffic leaves nothing behind; `python -m benchmarks.soak` takes longer."""

from pathlib import Path

import pytest

from benchmarks.soak import ENVIRONMENT, FLAGS, soak, table
from tests.support.guarded import guarding
from tests.support.models import Models

NUM_ROUNDS = 10
ROUND_S = 6.0
ACTS = 13 + 4


@pytest.mark.timeout(300)
def test_a_minute_of_everything(models: Models, tmp_path: Path) -> None:
    with guarding(models, tmp_path, *FLAGS, environment=ENVIRONMENT) as guarded:
        found = soak(guarded, NUM_ROUNDS, ROUND_S)
    assert not found.problems(), f"{found.problems()}\n{table(found)}"
    assert len({outcome.partition(":")[0] for outcome in found.outcomes}) == ACTS
