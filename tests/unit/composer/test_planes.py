"""Planes made of planes, against counting the ones of each."""

from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.build import build_bank
from taskmix_composer.compose import merged_tensor
from taskmix_composer.errors import InvalidMethodError, InvalidMixError, TaskExistsError
from taskmix_composer.forms import Forms
from taskmix_composer.merge import parse_params
from taskmix_composer.mix import Mix, Term
from taskmix_composer.planes import combine_planes
from taskmix_composer.publish import MergeRequest, merge_tasks
from taskmix_composer.quant.masked import decode_plane
from tests.unit.composer.models import DOWN, make_weights, save_model, tuned

WEIGHTS = make_weights()
TASKS = ("math", "code", "law")
PLANES = tuple(f"t.{task}" for task in TASKS)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    """Three tasks, and the planes of a merge of all and of one of two."""
    base = save_model(tmp_path / "base", WEIGHTS)
    sources = {
        task: save_model(tmp_path / task, tuned(WEIGHTS, seed))
        for seed, task in enumerate(TASKS, start=1)
    }
    path = build_bank(base, sources, Forms.parse("exact,dense"), tmp_path / "bank").path
    for name, tasks in {"t": TASKS, "two": TASKS[:2]}.items():
        params = parse_params("ties", ["density=0.3", "merge_func=sum"])
        merge_tasks(path, base, MergeRequest("ties", tasks, params, name, is_planes=True))
    return path


def ones(bank: Bank, plane: str, tensor: str) -> Tensor:
    """bool; a tensor that a plane does not have is masked out."""
    found = bank.read_plane(plane, tensor)
    return torch.zeros(WEIGHTS[tensor].shape).bool() if found is None else decode_plane(found) > 0


@pytest.mark.parametrize("at_least", [1, 2, 3])
def test_a_plane_keeps_what_so_many_keep(bank: Path, at_least: int) -> None:
    combined = combine_planes(bank, PLANES, at_least, "out")
    num_ones = 0
    for tensor in WEIGHTS:
        kept = sum(ones(combined, plane, tensor).int() for plane in PLANES) >= at_least
        assert torch.equal(ones(combined, "out", tensor), kept), tensor
        num_ones += int(kept.sum())
    record = combined.plane("out")
    assert record.density == num_ones / sum(tensor.numel() for tensor in WEIGHTS.values())
    assert record.derivation.bound == combined.plane("t.math").derivation.bound
    assert Bank.open(bank).plane("out") == record


def test_complements_count_where_a_plane_says_nothing(bank: Path) -> None:
    combined = combine_planes(bank, ["!t.math", "t.code"], 2, "rest")
    for tensor in WEIGHTS:
        kept = ~ones(combined, "t.math", tensor) & ones(combined, "t.code", tensor)
        assert torch.equal(ones(combined, "rest", tensor), kept), tensor
    everything = combine_planes(bank, ["!t.math", "t.math"], 1, "all")
    assert everything.plane("all").density == 1.0


def test_a_union_adds_what_its_expansion_into_terms_adds(bank: Path) -> None:
    """OR = m1 + m2 - m1 * m2, for each task of the set."""
    combined = combine_planes(bank, ["t.math", "t.code"], 1, "either")
    union = Mix(tuple(Term(task, 0.5, ("either",)) for task in TASKS))
    terms = [
        Term(task, sign * 0.5, masks)
        for task in TASKS
        for sign, masks in ((1, ("t.math",)), (1, ("t.code",)), (-1, ("t.code", "t.math")))
    ]
    expanded = Mix(tuple(terms))
    combined.check_mix(union)
    before = torch.zeros(WEIGHTS[DOWN].shape)
    found = merged_tensor(before, combined, union, DOWN)
    assert found.any()
    torch.testing.assert_close(found, merged_tensor(before, combined, expanded, DOWN))


def test_the_plane_is_for_the_set_of_those_it_is_made_of(bank: Path) -> None:
    combined = combine_planes(bank, PLANES[:2], 1, "either")
    for some in combinations(TASKS, 2):
        with pytest.raises(InvalidMixError, match="elected for the tasks code, law, math"):
            combined.check_mix(Mix(tuple(Term(task, 1.0, ("either",)) for task in some)))


@pytest.mark.parametrize(
    ("masks", "at_least", "name", "error", "message"),
    [
        ((), 1, "out", InvalidMethodError, "each once"),
        (("t.math", "t.math"), 1, "out", InvalidMethodError, "each once"),
        (PLANES, 0, "out", InvalidMethodError, "at least 0 of 3"),
        (PLANES, 4, "out", InvalidMethodError, "at least 4 of 3"),
        (("t.math", "no"), 1, "out", InvalidMixError, "no plane 'no'"),
        (("t.math", "two.math"), 1, "out", InvalidMethodError, "law .* combine planes of one set"),
        (PLANES, 1, "t.law", TaskExistsError, r"has 't\.law' already"),
        (PLANES, 1, "law", TaskExistsError, "has 'law' already"),
        (PLANES, 1, "Not a name", InvalidMixError, "not a task name"),
    ],
)
def test_refusals_leave_the_bank_as_it_was(
    bank: Path,
    masks: tuple[str, ...],
    at_least: int,
    name: str,
    error: type[Exception],
    message: str,
) -> None:
    revision = Bank.open(bank).revision
    with pytest.raises(error, match=message):
        combine_planes(bank, masks, at_least, name)
    assert Bank.open(bank).revision == revision
