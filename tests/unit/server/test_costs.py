"""The costs of a machine: measured once, kept in a file, and what is decided by them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskmix_server.engine.vllm.costs import NEVER_MERGE, Costs, known_costs, measure

COSTS = Costs(read=1.0, row=0.5, decode=10.0, install=100.0)


class Installs:
    """An engine's way to make a weight ready that counts how often it was used."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, weight: Tensor) -> None:
        assert weight.dtype is torch.bfloat16
        self.count += 1


def test_adding_grows_with_tasks_and_rows_and_merging_does_not_with_rows() -> None:
    assert COSTS.adding_s(num_weights=2, num_tasks=3, num_rows=4) == 2 * 3 * (1.0 + 4 * 0.5)
    assert COSTS.merging_s(num_weights=2, num_tasks=3) == 2 * (3 * 10.0 + 100.0)


def test_where_nothing_was_measured_nothing_is_merged() -> None:
    added_s = NEVER_MERGE.adding_s(10**9, 100, 10**6)
    assert added_s < NEVER_MERGE.merging_s(1, 1)


def test_measured_work_takes_time() -> None:
    costs = measure(torch.bfloat16, Installs())
    assert costs.decode > 0.0
    assert costs.install > 0.0
    assert costs.adding_s(10**6, 1, 32) > 0.0


def test_a_machine_is_measured_once(tmp_path: Path) -> None:
    path, installs = tmp_path / "cache" / "costs.json", Installs()
    first = known_costs(path, torch.bfloat16, installs)
    measured = installs.count
    assert measured > 0
    assert known_costs(path, torch.bfloat16, installs) == first
    assert installs.count == measured


@pytest.mark.parametrize("text", ["", "[]", '{"x": 1}', '{"x": {"read": 1}}', "\xff"])
def test_a_damaged_file_counts_as_empty(tmp_path: Path, text: str) -> None:
    path, installs = tmp_path / "costs.json", Installs()
    path.write_text(text, encoding="latin-1")
    costs = known_costs(path, torch.bfloat16, installs)
    assert installs.count > 0
    assert known_costs(path, torch.bfloat16, Installs()) == costs
