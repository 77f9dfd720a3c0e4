"""Planes in mixes: what they keep, and with which tasks they may be used."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from taskmix_composer.bank import Bank
from taskmix_composer.bank.records import Derivation
from taskmix_composer.bank.writer import publish
from taskmix_composer.build import add_task, remove_task
from taskmix_composer.compose import is_changed, merged_tensor, term_mask
from taskmix_composer.errors import InvalidMixError, UnknownTaskError
from taskmix_composer.forms import Forms
from taskmix_composer.mix import BASE_MIX, Mix, Term
from taskmix_composer.publish import MergeRequest, merge_tasks
from tests.support.planes import add_planes, random_masks
from tests.unit.composer.models import (
    DOWN,
    EMBEDDING,
    NORM,
    QUERY,
    make_factors,
    make_weights,
    save_model,
    tuned,
)

WEIGHTS = make_weights()
MATH, CODE = tuned(WEIGHTS, seed=1), tuned(WEIGHTS, seed=2)
BOTH = ("math", "code")


def both(first: str = "p.math", second: str = "p.code") -> Mix:
    return Mix((Term("math", 0.5, (first,)), Term("code", -2.0, (second,))))


@pytest.fixture
def masks(bank: Path) -> dict[str, dict[str, Tensor]]:
    """Masks of half of everything; the second of them keeps nothing of the norm."""
    opened = Bank.open(bank)
    return {
        "p.math": random_masks(opened, seed=1),
        "p.code": random_masks(opened, seed=2, without="norm"),
    }


@pytest.fixture
def planes(bank: Path, masks: dict[str, dict[str, Tensor]]) -> Bank:
    """The bank with these masks, elected among both tasks."""
    return add_planes(bank, BOTH, masks)


def kept(masks: dict[str, dict[str, Tensor]], plane: str, name: str) -> Tensor:
    return masks[plane].get(name, torch.zeros(WEIGHTS[name].shape, dtype=torch.bool))


def expected(name: str, math: Tensor, code: Tensor) -> Tensor:
    """Base plus half of math and minus twice code under these masks, in float64."""
    base = WEIGHTS[name].double()
    mine, other = MATH[name].double() - base, CODE[name].double() - base
    return base + 0.5 * math * mine - 2.0 * code * other


@pytest.mark.parametrize("name", list(WEIGHTS))
def test_masks_and_their_complements_keep_their_weights(
    planes: Bank, masks: dict[str, dict[str, Tensor]], name: str
) -> None:
    math, code = kept(masks, "p.math", name), kept(masks, "p.code", name)
    for mix, mask, other in (
        (both(), math, code),
        (both("!p.math", "p.code"), ~math, code),
        (both("p.math", "!p.code"), math, ~code),
    ):
        planes.check_mix(mix)
        merged = merged_tensor(WEIGHTS[name], planes, mix, name).double()
        torch.testing.assert_close(merged, expected(name, mask, other), rtol=1e-6, atol=1e-6)


def test_masks_of_one_term_intersect(planes: Bank, masks: dict[str, dict[str, Tensor]]) -> None:
    term = Term("math", 1.0, ("!p.code", "p.math"))
    mask = term_mask(planes, term, QUERY)
    assert torch.equal(mask, masks["p.math"][QUERY] & ~masks["p.code"][QUERY])
    assert term_mask(planes, Term("math"), QUERY) is None
    assert not term_mask(planes, Term("math", 1.0, ("p.code",)), NORM).any()
    mix = Mix((term, Term("code", 1.0, ("p.math",))))
    planes.check_mix(mix)
    delta = merged_tensor(torch.zeros(20, 20), planes, mix, QUERY)
    only = MATH[QUERY].float() - WEIGHTS[QUERY].float()
    rest = CODE[QUERY].float() - WEIGHTS[QUERY].float()
    assert torch.equal(delta, only * mask + rest * masks["p.math"][QUERY])


def test_a_mask_and_its_complement_make_the_whole(planes: Bank) -> None:
    terms = [Term(task, 1.0, (mask,)) for task in BOTH for mask in ("p.math", "!p.math")]
    mix, whole = Mix(tuple(terms)), Mix.of({"math": 1.0, "code": 1.0})
    planes.check_mix(mix)
    for name, tensor in WEIGHTS.items():
        merged = merged_tensor(tensor, planes, mix, name)
        torch.testing.assert_close(merged, merged_tensor(tensor, planes, whole, name))


def test_masks_fall_on_changed_rows_and_adapters(
    bank: Path, base: Path, adapter: Path, tmp_path: Path
) -> None:
    model = {**WEIGHTS, EMBEDDING: WEIGHTS[EMBEDDING].clone()}
    model[EMBEDDING][[3, 8]] += 1
    add_task(bank, base, "rows", save_model(tmp_path / "rows", model))
    opened = add_task(bank, base, "lora", adapter)
    mask = random_masks(opened, seed=5)
    opened = add_planes(bank, ("rows", "lora"), {"q": mask})
    mix = Mix((Term("rows", 1.0, ("q",)), Term("lora", 1.0, ("!q",))))
    opened.check_mix(mix)
    rows = merged_tensor(torch.zeros(12, 20), opened, mix, EMBEDDING)
    moved = model[EMBEDDING].float() - WEIGHTS[EMBEDDING].float()
    assert torch.equal(rows, moved * mask[EMBEDDING])
    a, b = make_factors().values()
    query = merged_tensor(torch.zeros(20, 20), opened, mix, QUERY)
    torch.testing.assert_close(query, 2.0 * b @ a * ~mask[QUERY])
    assert is_changed(opened, mix, QUERY)
    assert not is_changed(opened, mix, DOWN)


def test_a_plane_with_another_set_is_refused_naming_both(
    planes: Bank, base: Path, tmp_path: Path
) -> None:
    law = save_model(tmp_path / "law", tuned(WEIGHTS, seed=3))
    opened = add_task(planes.path, base, "law", law)
    subset = Mix((Term("math", 1.0, ("p.math",)), Term("code")))
    superset = Mix((*both().terms, Term("law", 1.0, ("!p.code",))))
    other = Mix((Term("math", 1.0, ("p.math",)), Term("law", 1.0, ("p.code",))))
    for mix, used in ((subset, "math"), (superset, "code, law, math"), (other, "law, math")):
        with pytest.raises(InvalidMixError) as caught:
            opened.check_mix(mix)
        message = str(caught.value)
        assert "elected for the tasks code, math" in message
        assert f"uses it for {used};" in message
        assert "bank merge" in message
    opened.check_mix(Mix((*both().terms, Term("law"))))


def test_planes_of_two_elections_are_judged_apart(
    planes: Bank, masks: dict[str, dict[str, Tensor]]
) -> None:
    opened = add_planes(planes.path, ("math",), {"solo": masks["p.math"]})
    opened.check_mix(Mix((Term("math", 1.0, ("solo",)), Term("code"))))
    opened.check_mix(Mix((*both().terms, Term("math", 1.0, ("solo",)))))
    with pytest.raises(InvalidMixError, match=r"plane 'solo' was elected for the tasks math and"):
        opened.check_mix(Mix((*both().terms, Term("code", 1.0, ("solo",)))))


def test_a_plane_for_another_fine_tune_of_the_same_name_is_refused(
    planes: Bank, base: Path, math: Path, code: Path
) -> None:
    remove_task(planes.path, "math")
    with pytest.raises(UnknownTaskError, match="no task 'math'"):
        Bank.open(planes.path).check_mix(both())
    changed = add_task(planes.path, base, "math", code)
    with pytest.raises(InvalidMixError, match="another fine-tune under the name 'math'"):
        changed.check_mix(both())
    changed.check_mix(Mix.of({"math": 1.0, "code": 1.0}))
    remove_task(planes.path, "math")
    add_task(planes.path, base, "math", math).check_mix(both())


def test_the_scheme_of_a_task_does_not_matter_to_a_plane(
    planes: Bank, base: Path, math: Path
) -> None:
    remove_task(planes.path, "math")
    add_task(planes.path, base, "math", math, Forms.parse("int8")).check_mix(both())


def test_a_derived_entry_stands_for_the_tasks_it_was_made_of(
    planes: Bank, base: Path, math: Path, code: Path
) -> None:
    request = MergeRequest("magmax", BOTH, {"lambda": 1.0}, "merged", is_from_bank=True)
    opened, _ = merge_tasks(planes.path, base, request)
    opened.check_mix(Mix((Term("merged", 1.0, ("p.math",)),)))
    alone = MergeRequest("magmax", ("math",), {"lambda": 1.0}, "alone", is_from_bank=True)
    opened, _ = merge_tasks(planes.path, base, alone)
    with pytest.raises(InvalidMixError, match="uses it for math;"):
        opened.check_mix(Mix((Term("alone", 1.0, ("p.math",)),)))
    remove_task(planes.path, "math")
    opened = add_task(planes.path, base, "math", code)
    opened.check_mix(Mix((Term("merged", 1.0, ("p.math",)),)))
    again = MergeRequest("magmax", BOTH, {"lambda": 1.0}, "again", is_from_bank=True)
    opened, _ = merge_tasks(planes.path, base, again)
    with pytest.raises(InvalidMixError, match="another fine-tune under the name 'math'"):
        opened.check_mix(Mix((Term("again", 1.0, ("p.math",)),)))


def test_places_are_checked_for_a_task_that_was_removed_meanwhile(planes: Bank) -> None:
    opened = remove_task(planes.path, "math")
    opened.check_places(both())
    with pytest.raises(InvalidMixError, match="uses it for math;"):
        opened.check_places(Mix((Term("math", 1.0, ("p.math",)),)))


def test_unknown_planes_are_refused_naming_those_there_are(bank: Path, planes: Bank) -> None:
    with pytest.raises(InvalidMixError, match=r"no plane 'p\.law'; it has p\.code, p\.math"):
        planes.check_mix(both("p.law"))
    with pytest.raises(InvalidMixError, match=r"no plane 'p\.law'"):
        planes.check_mix(both("!p.law"))
    publish(bank, replace(planes.manifest, planes={}))
    with pytest.raises(InvalidMixError, match="it has none"):
        Bank.open(bank).check_mix(both())


def test_planes_are_part_of_the_bank_and_of_a_mix_digest(
    planes: Bank, masks: dict[str, dict[str, Tensor]]
) -> None:
    assert set(planes.plane_digests) == {"p.math", "p.code"}
    assert planes.read_plane("p.code", NORM) is None
    same = add_planes(planes.path, BOTH, {"q": masks["p.math"]})
    assert same.plane_digests["q"] == same.plane_digests["p.math"]
    assert same.revision != planes.revision
    digests = (planes.entry_digests, planes.plane_digests)
    assert both().digest(*digests) != both("!p.math").digest(*digests)
    assert both().digest(*digests) != both("p.code").digest(*digests)
    exchanged = {"p.math": digests[1]["p.code"], "p.code": digests[1]["p.math"]}
    assert both().digest(digests[0], exchanged) != both().digest(*digests)
    assert BASE_MIX.planes == ()


def test_derivations_are_told_apart_by_all_they_say() -> None:
    one = Derivation("ties", {"density": 0.2}, {"math": "a", "code": "b"})
    assert one.digest == Derivation("ties", {"density": 0.2}, {"code": "b", "math": "a"}).digest
    assert one.source == "ties of code, math"
    others = [
        replace(one, method="dare"),
        replace(one, params={"density": 0.3}),
        replace(one, bound={"math": "a", "code": "c"}),
        replace(one, is_from_bank=True),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 5
