from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.bank.records import DeltaRecord
from taskmix_composer.bank.storage import loaded_parts, stored_parts
from taskmix_composer.config import Scheme
from taskmix_composer.errors import BankFormatError
from taskmix_composer.quant import decode, encode, masked

CODED = ["dense16", "int8", "int4", "int3", "int2(group=0)", "sign(salient=0.3)", "sparse"]


def heavy_tailed(shape: tuple[int, ...], seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) ** 5 * 1e-4


def record(delta: EncodedDelta) -> DeltaRecord:
    parts = {part: stored.record for part, stored in stored_parts(delta).items()}
    return DeltaRecord(delta.codec, delta.shape, delta.params, parts, digest="")


def stored_tensors(delta: EncodedDelta) -> dict[str, Tensor]:
    return {part: stored.values for part, stored in stored_parts(delta).items()}


def assert_restored(delta: EncodedDelta) -> None:
    loaded = loaded_parts(record(delta), stored_tensors(delta), delta.shared)
    assert loaded.keys() == delta.tensors().keys()
    for part, values in delta.tensors().items():
        assert torch.equal(loaded[part], values), part


@given(
    scheme=st.sampled_from(CODED),
    shape=st.sampled_from([(1, 1), (1, 9), (4, 64), (5, 65), (2, 3, 4), (40, 100)]),
    seed=st.integers(0, 10_000),
)
def test_parts_are_restored(scheme: str, shape: tuple[int, ...], seed: int) -> None:
    assert_restored(encode(heavy_tailed(shape, seed), Scheme.parse(scheme)))


@given(
    name=st.sampled_from(["dense", "int2", "int4"]),
    shape=st.sampled_from([(1, 9), (5, 65), (2, 3, 4), (40, 100)]),
    kept=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    seed=st.integers(0, 10_000),
)
def test_masks_over_a_shared_vector_are_restored(
    name: str, shape: tuple[int, ...], kept: float, seed: int
) -> None:
    shared = encode(heavy_tailed(shape, seed), Scheme(name))
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < kept
    assert_restored(masked.encode(mask, shared, decode(shared), 1.0))


def test_masks_and_skewed_codes_are_stored_in_fewer_bytes() -> None:
    delta = encode(heavy_tailed((64, 512), 0), Scheme.of("sparse", density=0.1, bits=3))
    stored = stored_parts(delta)
    for part in ("mask", "codes"):
        assert stored[part].record.num_coded == stored[part].values.numel()
        assert stored[part].record.num_bytes == delta.parts[part].nbytes
        assert stored[part].values.numel() < 0.8 * delta.parts[part].numel()
    assert stored["scales"].record.num_coded is None


def test_a_mask_that_follows_the_shared_codes_costs_little() -> None:
    shared = encode(
        torch.randn(64, 512, generator=torch.Generator().manual_seed(0)), Scheme("int4")
    )
    values = decode(shared)
    following = masked.encode(values > 0.5, shared, values, 1.0)
    at_random = masked.encode(values[:, torch.randperm(512)] > 0.5, shared, values, 1.0)
    sizes = [stored_parts(delta)["mask"].values.numel() for delta in (following, at_random)]
    assert sizes[0] < sizes[1] / 2


def test_codes_without_skew_are_stored_as_they_are() -> None:
    delta = encode(torch.rand(8, 4096, generator=torch.Generator().manual_seed(0)), Scheme("int8"))
    assert stored_parts(delta)["codes"].record.num_coded is None
    assert torch.equal(stored_parts(delta)["codes"].values, delta.parts["codes"])


@pytest.mark.parametrize("length", [0, 1, 20, 200])
def test_cut_streams_are_refused(length: int) -> None:
    delta = encode(heavy_tailed((64, 512), 0), Scheme("sparse"))
    stored = stored_tensors(delta)
    with pytest.raises(BankFormatError):
        loaded_parts(record(delta), {**stored, "mask": stored["mask"][:length]}, None)


def test_streams_of_other_symbols_are_refused() -> None:
    delta = encode(heavy_tailed((64, 512), 0), Scheme.of("int4", group=0))
    described = record(delta)
    narrower = replace(described, params={**described.params, "bits": 2})
    with pytest.raises(BankFormatError):
        loaded_parts(narrower, stored_tensors(delta), None)


def test_a_mask_over_another_vector_is_refused() -> None:
    shared = encode(heavy_tailed((64, 512), 0), Scheme("int4"))
    delta = masked.encode(torch.ones(64, 512).bool(), shared, decode(shared), 1.0)
    smaller = encode(heavy_tailed((32, 512), 0), Scheme("int4"))
    with pytest.raises(BankFormatError, match="does not fit"):
        loaded_parts(record(delta), stored_tensors(delta), smaller)
