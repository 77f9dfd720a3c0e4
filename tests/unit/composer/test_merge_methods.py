import math
import weakref

import pytest
import torch
from torch import Tensor

from taskmix_composer.layout import MAX_BLOCK_ELEMENTS
from taskmix_composer.merge import (
    MERGE_METHODS,
    Selection,
    agreement,
    parse_params,
    tall_masks,
    unified,
)
from tests.support.vectors import HeldVectors

SHAPES = {"bias": (7,), "conv": (2, 3, 2), "matrix": (6, 10), "scalar": ()}
PLANES = {
    "ties": ["merge_func=sum", "lambda=0.3"],
    "ties-mergekit": ["normalize=false", "density=0.4", "weight=0.5,-1,2", "lambda=0.7"],
    "dare": ["density=0.4", "lambda=0.3"],
    "dare-mergekit": ["density=0.4", "normalize=true", "weight=0.5,-1,2"],
    "consensus-ta": ["lambda=0.3", "tall_mask_lambda=0.4"],
    "consensus-ties": ["lambda=0.3", "density=0.5"],
    "breadcrumbs": ["density=0.5", "gamma=0.2", "weight=0.5,-1,2"],
    "magmax": [],
    "emr": [],
}


def make_vectors(num_tasks: int = 3, num_unchanged: int = 0) -> HeldVectors:
    generator = torch.Generator().manual_seed(num_tasks)
    deltas = {
        name: 1e-3 * torch.randn((num_tasks, *shape), generator=generator)
        for name, shape in SHAPES.items()
    }
    deltas["matrix"][0, :2] = 0
    return HeldVectors(deltas, num_unchanged)


def merge(vectors: HeldVectors, method: str, *pairs: str) -> dict[str, Tensor]:
    return dict(MERGE_METHODS[method].merge(vectors, parse_params(method, pairs)))


def single(*columns: list[float]) -> HeldVectors:
    """Vectors of one tensor, from its elements' values by task."""
    return HeldVectors({"a": torch.tensor(columns).T.contiguous()})


def test_every_method_with_planes_is_tested() -> None:
    with_planes = [n for n, method in MERGE_METHODS.items() if method.planes_if is not None]
    assert sorted(PLANES) == sorted(with_planes)


@pytest.mark.parametrize("method", PLANES)
def test_planes_and_coefficients_say_all_of_the_result(method: str) -> None:
    vectors = make_vectors(num_unchanged=5)
    params = parse_params(method, PLANES[method])
    merged = dict(MERGE_METHODS[method].merge(vectors, params))
    assert MERGE_METHODS[method].has_planes(params)
    for part in MERGE_METHODS[method].planes(vectors, params):
        assert part.masks.dtype == torch.bool
        assert part.masks.shape == (3, *SHAPES[part.tensor])
        expected = torch.zeros(SHAPES[part.tensor], dtype=torch.float64)
        terms = zip(part.coefficients, part.masks, vectors.deltas[part.tensor], strict=True)
        for coefficient, mask, delta in terms:
            expected += coefficient * mask * delta.double()
        distance = (merged[part.tensor] - expected).norm()
        assert distance <= 1e-6 * expected.norm()
    assert any(delta.any() for delta in merged.values())


@pytest.mark.parametrize(
    "method", ["ties", "ties-mergekit", "consensus-ta", "consensus-ties", "magmax", "emr"]
)
def test_elements_merge_alike_in_large_tensors_and_small(method: str) -> None:
    whole = torch.randn((3, 2 * MAX_BLOCK_ELEMENTS), generator=torch.Generator().manual_seed(0))
    pieces = {f"{number:02}": piece for number, piece in enumerate(whole.split(1000, dim=1))}
    merged = merge(HeldVectors({"a": whole}), method)["a"]
    assert torch.equal(merged, torch.cat(list(merge(HeldVectors(pieces), method).values())))
    assert merged.any()


def test_masks_of_a_large_tensor_are_made_like_those_of_its_parts() -> None:
    deltas = torch.randn((3, 2, MAX_BLOCK_ELEMENTS), generator=torch.Generator().manual_seed(0))
    common, total = unified(deltas), deltas.sum(dim=0)
    agreeing, local = agreement(deltas, common), tall_masks(deltas, total, [0.4, 0.5, 0.6])
    for number, part in enumerate(deltas.split(1000, dim=2)):
        place = slice(1000 * number, 1000 * (number + 1))
        assert torch.equal(common[:, place], unified(part))
        assert torch.equal(agreeing[:, :, place], agreement(part, common[:, place]))
        masks = tall_masks(part, total[:, place], [0.4, 0.5, 0.6])
        assert torch.equal(local[:, :, place], masks)


class CountedVectors(HeldVectors):
    """Vectors that refuse to be read while an earlier tensor is still held."""

    def read(self, tensor: str) -> Tensor:
        held = self.__dict__.setdefault("held", {})
        assert not [name for name, reference in held.items() if reference() is not None]
        deltas = super().read(tensor)
        held[tensor] = weakref.ref(deltas)
        return deltas


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_one_tensor_is_held_at_a_time(method: str) -> None:
    vectors = CountedVectors(make_vectors().deltas)
    params = parse_params(method, [])
    assert [name for name, _ in MERGE_METHODS[method].merge(vectors, params)] == sorted(SHAPES)


@pytest.mark.parametrize("method", PLANES)
def test_planes_are_made_one_tensor_at_a_time(method: str) -> None:
    vectors = CountedVectors(make_vectors().deltas)
    params = parse_params(method, PLANES[method])
    names = map(lambda part: part.tensor, MERGE_METHODS[method].planes(vectors, params))  # noqa: C417 a comprehension would hold the part
    assert list(names) == sorted(SHAPES)


@pytest.mark.parametrize("method", MERGE_METHODS)
def test_vectors_that_change_nothing_merge_to_nothing(method: str) -> None:
    vectors = HeldVectors({name: torch.zeros(2, *shape) for name, shape in SHAPES.items()})
    for delta in merge(vectors, method).values():
        assert torch.equal(delta, torch.zeros_like(delta))


def test_ties_trims_over_all_weights_also_the_unchanged() -> None:
    # Of 10 weights, 0.2 keeps 3; with 10 unchanged ones besides, 5.
    deltas = {"a": torch.arange(1.0, 7.0).view(1, 6), "b": torch.arange(7.0, 11.0).view(1, 4)}
    merged = merge(HeldVectors(deltas), "ties", "density=0.2")
    assert merged["a"].tolist() == [0] * 6
    assert merged["b"].tolist() == [0, 8, 9, 10]
    merged = merge(HeldVectors(deltas, num_unchanged=10), "ties", "density=0.2")
    assert merged["a"].tolist() == [0] * 5 + [6]
    assert merged["b"].tolist() == [7, 8, 9, 10]
    assert merge(HeldVectors(deltas), "ties", "density=1")["a"].tolist() == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("rest", "elected"), [(4.0, 2.0), (-4.0, -2.0)])
def test_ties_settles_a_cancelled_sum_by_what_most_weights_elect(
    rest: float, elected: float
) -> None:
    vectors = single([2.0, -2.0], [rest, rest], [3 * rest, -rest], [rest, rest])
    merged = merge(vectors, "ties", "density=1")["a"]
    assert merged.tolist() == [elected, rest, 3 * rest, rest]


def test_ties_settles_an_even_vote_by_minus() -> None:
    vectors = single([2.0, -2.0], [4.0, 4.0], [-4.0, -4.0])
    assert merge(vectors, "ties", "density=1")["a"].tolist() == [-2, 4, -4]


def test_ties_means_over_those_who_agree() -> None:
    vectors = single([1.0, 3.0, -1.0], [0.0, 3.0, -1.0], [-5.0, -1.0, 1.0])
    merged = merge(vectors, "ties", "density=1", "merge_func=mean", "lambda=0.5")["a"]
    assert merged.tolist() == [1.0, 1.5, -1.5]
    merged = merge(vectors, "ties", "density=1", "merge_func=sum", "lambda=0.5")["a"]
    assert merged.tolist() == [2.0, 1.5, -3.0]


def test_ties_of_mergekit_elects_with_the_weights() -> None:
    vectors = single([1.0, -3.0], [2.0, -2.0], [0.0, -1.0])
    merged = merge(vectors, "ties-mergekit", "weight=5,1")["a"]
    assert merged.tolist() == [1.0, 2.0, -1.0]
    merged = merge(vectors, "ties-mergekit", "weight=1,5", "normalize=false", "lambda=2")["a"]
    assert merged.tolist() == [-30.0, -20.0, -10.0]
    merged = merge(vectors, "ties-mergekit", "weight=1,1")["a"]
    assert merged.tolist() == [-3.0, 2.0, -1.0]


def test_ties_of_mergekit_keeps_an_element_of_the_smallest_tensor() -> None:
    merged = merge(single([1.0], [3.0], [2.0]), "ties-mergekit", "density=0.01")["a"]
    assert merged.tolist() == [0, 3, 0]


def test_dare_keeps_a_share_of_the_weights_scaled_up() -> None:
    deltas = torch.ones(2, 200, 100)
    merged = merge(HeldVectors({"a": deltas}), "dare", "density=0.25", "lambda=0.5")["a"]
    assert sorted(set(merged.flatten().tolist())) == [0, 2, 4]
    # Expected 1; the mean of 20,000 such draws strays by 0.009 (one standard deviation).
    assert abs(float(merged.mean()) - 1) < 0.04


@pytest.mark.parametrize("method", ["dare", "dare-mergekit"])
def test_dare_of_density_one_keeps_everything(method: str) -> None:
    vectors = make_vectors()
    for name, delta in merge(vectors, method, "density=1").items():
        torch.testing.assert_close(delta, vectors.deltas[name].sum(dim=0))


@pytest.mark.parametrize("method", ["dare", "dare-mergekit"])
def test_a_draw_does_not_depend_on_the_other_tasks(method: str) -> None:
    vectors = make_vectors(3)
    fewer = HeldVectors({name: delta[:2] for name, delta in vectors.deltas.items()})
    params = parse_params(method, ["density=0.5"])
    drawn = {part.tensor: part.masks for part in MERGE_METHODS[method].planes(vectors, params)}
    for part in MERGE_METHODS[method].planes(fewer, params):
        assert torch.equal(part.masks, drawn[part.tensor][:2])
    assert not torch.equal(drawn["matrix"][0], drawn["matrix"][1])
    other = parse_params(method, ["density=0.5", "seed=1"])
    for part in MERGE_METHODS[method].planes(vectors, other):
        assert part.tensor != "matrix" or not torch.equal(part.masks, drawn["matrix"])


def test_dare_of_mergekit_keeps_l1_norms() -> None:
    vectors = make_vectors(1)
    merged = merge(vectors, "dare-mergekit", "density=0.5")
    for name in ("bias", "conv", "matrix"):
        before = float(vectors.deltas[name].abs().sum())
        assert math.isclose(float(merged[name].abs().sum()), before, rel_tol=1e-5)
        assert 0 < (merged[name] == 0).sum() < merged[name].numel()
    tiny = HeldVectors({"a": torch.full((1, 64), 1e-9)})
    kept = merge(tiny, "dare-mergekit", "density=0.5")["a"]
    assert set(kept.tolist()) == {0.0, float(torch.tensor(1e-9))}


@pytest.mark.parametrize("method", ["dare-mergekit", "breadcrumbs"])
def test_mergekit_s_normalize_divides_by_the_weights_unless_they_cancel(method: str) -> None:
    vectors = single([1.0, 2.0], [4.0, 1.0])
    merged = merge(vectors, method, "weight=1,3", "normalize=true", "lambda=2", "density=1")["a"]
    assert merged.tolist() == [3.5, 3.5]
    merged = merge(vectors, method, "weight=1,-1", "normalize=true", "density=1")["a"]
    assert merged.tolist() == [-1, 3]


def test_breadcrumbs_drops_both_ends() -> None:
    vectors = single([3.0], [-9.0], [1.0], [5.0], [-7.0], [2.0], [8.0], [4.0], [6.0], [-10.0])
    merged = merge(vectors, "breadcrumbs", "density=0.4", "gamma=0.2", "lambda=2")["a"]
    assert merged.tolist() == [0, 0, 0, 10, -14, 0, 16, 0, 12, 0]
    merged = merge(vectors, "breadcrumbs", "density=0.4", "gamma=0")["a"]
    assert merged.tolist() == [0, -9, 0, 0, -7, 0, 8, 0, 0, -10]
    merged = merge(vectors, "breadcrumbs", "density=0.9", "gamma=0.5")["a"]
    assert merged.tolist() == [3, -9, 1, 5, -7, 2, 8, 4, 6, 0]


def test_magmax_takes_the_last_of_equal_magnitudes() -> None:
    vectors = single([1.0, -2.0, 0.5], [3.0, -3.0, 1.0], [0.0, 0.0, 0.0], [-1.0, 1.0, 1.0])
    assert merge(vectors, "magmax")["a"].tolist() == [-1.0, -1.5, 0.0, 0.5]


def test_emr_takes_the_largest_of_the_elected_sign() -> None:
    vectors = single([1.0, 2.0, -2.5], [-1.0, -3.0, 3.5], [2.0, -2.0, 0.0], [1.0, 1.0, 1.0])
    merged = merge(vectors, "emr")["a"]
    assert merged.tolist() == [2.0, -3.0, -2.0, 1.0]
    deltas = vectors.read("a")
    assert torch.equal(unified(deltas), merged)
    assert agreement(deltas, merged).T.tolist() == [
        [True, True, False],
        [True, True, False],
        [False, True, False],
        [True, True, True],
    ]


def test_agreement_of_the_smallest_numbers() -> None:
    deltas = torch.tensor([[2.0**-149, 0.0], [-(2.0**-149), -0.0]])
    assert agreement(deltas, torch.tensor([2.0**-149, 1.0])).tolist() == [
        [True, False],
        [False, False],
    ]


def test_tall_masks_are_strict() -> None:
    deltas = torch.tensor([[1.0, 0.0, 3.0], [1.0, 2.0, -1.0]])
    total = deltas.sum(dim=0)
    assert tall_masks(deltas, total, [1.0, 1.0]).tolist() == [
        [False, False, True],
        [False, True, False],
    ]
    assert tall_masks(deltas, total, [0.9, 3.0]).tolist() == [
        [True, False, True],
        [False, True, False],
    ]
    assert tall_masks(deltas[:1], deltas[0], [5.0]).tolist() == [[True, False, True]]


@pytest.mark.parametrize(("least", "kept"), [(0, [3, 8, 8]), (1, [0, 8, 8]), (2, [0, 0, 8])])
def test_consensus_keeps_what_enough_tasks_use(least: int, kept: list[float]) -> None:
    # At 0.5 the elements are in the masks of none, one and two of the three tasks.
    vectors = single([1.0, 1.0, 1.0], [6.0, 1.0, 1.0], [4.0, 4.0, 0.0])
    pairs = [f"prun_thre_k={least}", "tall_mask_lambda=0.5"]
    assert merge(vectors, "consensus-ta", *pairs)["a"].tolist() == kept


def test_consensus_of_none_is_the_sum_and_of_too_many_nothing() -> None:
    vectors = make_vectors()
    for name, delta in merge(vectors, "consensus-ta", "prun_thre_k=0").items():
        torch.testing.assert_close(delta, vectors.deltas[name].sum(dim=0))
    for delta in merge(vectors, "consensus-ta", "prun_thre_k=4").values():
        assert not delta.any()


def test_consensus_ties_masks_what_ties_gives() -> None:
    vectors = make_vectors()
    summed = merge(vectors, "ties", "merge_func=sum", "density=0.5")
    merged = merge(vectors, "consensus-ties", "density=0.5", "prun_thre_k=1", "lambda=0.5")
    for name, delta in merged.items():
        masks = tall_masks(vectors.deltas[name], summed[name], [1.0] * 3)
        torch.testing.assert_close(delta, 0.5 * masks.any(dim=0) * summed[name])


def test_orthogonal_tasks_survive_tsv_m_whole() -> None:
    # Half the rank each, in directions of their own: nothing is cut off and nothing turned.
    deltas = torch.zeros(2, 4, 6)
    deltas[0, 0, 1], deltas[0, 1, 0] = 2.0, 0.5
    deltas[1, 2, 3], deltas[1, 3, 5] = -3.0, 1.0
    merged = merge(HeldVectors({"a": deltas, "b": deltas[:, 0]}), "tsv-m", "alpha=0.5")
    torch.testing.assert_close(merged["a"], 0.5 * deltas.sum(dim=0))
    torch.testing.assert_close(merged["b"], 0.5 * deltas[:, 0].mean(dim=0))


def test_iso_c_levels_the_spectrum_of_the_sum() -> None:
    vectors = make_vectors()
    merged = merge(vectors, "iso-c", "scaling_factor=2")
    total = vectors.deltas["matrix"].sum(dim=0)
    spectrum = torch.linalg.svdvals(merged["matrix"])
    torch.testing.assert_close(spectrum, 2 * torch.linalg.svdvals(total).mean().expand(6))
    # Polar directions are kept: the product with the sum is symmetric and positive.
    product = merged["matrix"] @ total.T
    torch.testing.assert_close(product, product.T, rtol=1e-4, atol=1e-9)
    assert (torch.linalg.eigvalsh(product) > 0).all()
    for name in ("bias", "conv", "scalar"):
        torch.testing.assert_close(merged[name], 2 * vectors.deltas[name].mean(dim=0))


def test_shares_divide_each_element_by_those_selected() -> None:
    deltas = torch.tensor([[1.0, 2.0, 4.0], [3.0, 6.0, 5.0]])
    masks = torch.tensor([[True, True, False], [True, False, False]])
    part = Selection("a", deltas, masks, (2.0, 1.0), shares=(4.0, 1.0))
    assert part.merged().tolist() == [1.0, 1.0, 0.0]
