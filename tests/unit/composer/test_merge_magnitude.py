import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskmix_composer.merge.magnitude import kth_magnitudes, largest, smallest
from tests.support.vectors import HeldVectors

VALUES = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    # Zeros of both signs, the smallest number, and patterns that differ in one half only.
    st.sampled_from([0.0, -0.0, 2.0**-149, 1.0, -1.0, 1 + 2.0**-23, 1 + 2.0**-7, 2.0]),
)


@settings(max_examples=40)
@given(
    rows=st.lists(st.lists(VALUES, min_size=7, max_size=7), min_size=1, max_size=3),
    num_unchanged=st.integers(0, 4),
    rank=st.integers(1, 11),
)
def test_streamed_order_statistic_is_the_whole_vector_s(
    rows: list[list[float]], num_unchanged: int, rank: int
) -> None:
    whole = torch.tensor(rows, dtype=torch.float32)
    deltas = {"b": whole[:, :4].reshape(-1, 2, 2), "a": whole[:, 4:6], "c": whole[:, 6]}
    vectors = HeldVectors(deltas, num_unchanged)
    rank = min(rank, vectors.num_weights)
    padded = torch.cat([whole.abs(), torch.zeros(len(rows), num_unchanged)], dim=1)
    expected = padded.kthvalue(rank, dim=1).values
    assert torch.equal(kth_magnitudes(vectors, rank), expected)


def kept_by_sorting(values: Tensor, count: int, *, descending: bool) -> Tensor:
    order = torch.argsort(values.flatten(), descending=descending, stable=True)
    mask = torch.zeros(values.numel(), dtype=torch.bool)
    mask[order[:count]] = True
    return mask.view(values.shape)


@given(
    values=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    count=st.integers(0, 13),
)
def test_of_equal_values_the_first_are_taken(values: list[int], count: int) -> None:
    tensor = torch.tensor(values, dtype=torch.float32).reshape(1, -1)
    assert torch.equal(largest(tensor, count), kept_by_sorting(tensor, count, descending=True))
    assert torch.equal(smallest(tensor, count), kept_by_sorting(tensor, count, descending=False))


def test_a_scalar_and_an_empty_tensor() -> None:
    assert largest(torch.tensor(2.0), 1)
    assert not largest(torch.tensor(2.0), 0)
    assert largest(torch.zeros(0, 3), 1).shape == (0, 3)
