"""Merge methods against what their reference implementations gave, bit for bit where they select.

The files under `data` come from mergekit and fusion-bench; `make oracle` computes them again.
"""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from taskmix_composer.merge import (
    MERGE_METHODS,
    agreement,
    parse_params,
    tall_masks,
    unified,
)
from tests.support.vectors import HeldVectors

DATA = Path(__file__).parent / "data"
# Of the norm of a tensor's merged delta.
TOLERANCE = 1e-5
INPUTS = load_file(DATA / "vectors.safetensors")
REFERENCED = sorted(path.stem for path in DATA.glob("*.safetensors"))


def vectors_of(name: str) -> HeldVectors:
    inputs = {key.partition("/"): tensor for key, tensor in INPUTS.items()}
    return HeldVectors({key[2]: tensor for key, tensor in inputs.items() if key[0] == name})


def read_cases(method: str) -> list[tuple[str, list[str], dict[str, Tensor]]]:
    """The set of vectors, the parameters and what the reference gave, case by case."""
    path = DATA / f"{method}.safetensors"
    with safe_open(path, framework="pt") as file:
        cases = file.metadata()
    tensors = load_file(path)
    listed = []
    for number, text in cases.items():
        name, *params = text.split()
        given = {
            key.removeprefix(f"{number}/"): tensor
            for key, tensor in tensors.items()
            if key.startswith(f"{number}/")
        }
        listed.append((name, params, given))
    return listed


def test_every_method_has_a_reference() -> None:
    assert sorted([*MERGE_METHODS, "tall", "vectors"]) == REFERENCED
    for method in MERGE_METHODS:
        assert {name for name, _, _ in read_cases(method)} == {"alone", "many", "plain", "tied"}


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_merged_deltas_equal_the_reference(method: str) -> None:
    for name, params, given in read_cases(method):
        vectors = vectors_of(name)
        merged = dict(MERGE_METHODS[method].merge(vectors, parse_params(method, params)))
        assert list(merged) == list(vectors.shapes)
        for tensor, delta in merged.items():
            expected = given[f"delta/{tensor}"]
            assert delta.dtype == torch.float32
            assert delta.shape == expected.shape
            distance = float((delta.double() - expected.double()).norm())
            assert distance <= TOLERANCE * float(expected.double().norm()), (name, params, tensor)


@pytest.mark.parametrize(
    "method",
    [
        "breadcrumbs",
        "consensus-ta",
        "consensus-ties",
        "dare",
        "dare-mergekit",
        "ties",
        "ties-mergekit",
    ],
)
def test_selected_elements_are_the_reference_s(method: str) -> None:
    for name, params, given in read_cases(method):
        settings = parse_params(method, params)
        for part in MERGE_METHODS[method].parts(vectors_of(name), settings):
            taking_part = part.masks & (part.deltas != 0)
            assert torch.equal(taking_part, given[f"masks/{part.tensor}"]), (name, params)


@pytest.mark.parametrize("method", ["emr", "magmax"])
def test_elected_values_are_the_reference_s(method: str) -> None:
    for name, params, given in read_cases(method):
        settings = parse_params(method, params)
        for tensor, delta in MERGE_METHODS[method].merge(vectors_of(name), settings):
            assert torch.equal(delta, given[f"delta/{tensor}"]), (name, params)


def test_masks_of_emr_are_the_reference_s() -> None:
    for name, _, given in read_cases("emr"):
        vectors = vectors_of(name)
        for tensor in vectors.shapes:
            deltas = vectors.read(tensor)
            assert torch.equal(unified(deltas), given[f"delta/{tensor}"])
            assert torch.equal(agreement(deltas, unified(deltas)), given[f"agreement/{tensor}"])


def test_masks_of_tall_are_the_reference_s() -> None:
    for name, params, given in read_cases("tall"):
        vectors = vectors_of(name)
        lambdas = [float(params[0])] * len(vectors.tasks)
        for tensor in vectors.shapes:
            deltas = vectors.read(tensor)
            masks = tall_masks(deltas, deltas.sum(dim=0), lambdas)
            assert torch.equal(masks, given[f"masks/{tensor}"]), (name, params)
