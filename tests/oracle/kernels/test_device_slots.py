"""Slots hold what the bank's codecs decode to, and refuse what they cannot."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.errors import InvalidSchemeError
from taskmix_composer.kernels.device import planes
from taskmix_composer.kernels.device.factors import FactorSlots
from taskmix_composer.kernels.device.slots import DeltaSlots
from taskmix_composer.quant import decode, encode, lowrank, masked

CPU = torch.device("cpu")
SHAPES = [(1, 32), (64, 256), (100, 300), (130, 513), (7, 70)]


def delta_of(shape: tuple[int, int], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.rand(shape[0], 1, generator=generator).mul_(-20).exp2_()
    return torch.randn(shape, generator=generator) * rows * 1e-3


def int4(shape: tuple[int, int], group: int = 64) -> EncodedDelta:
    return encode(delta_of(shape), Scheme.of("int4", group=group))


@pytest.mark.parametrize("bits", planes.WORD_DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_words_hold_the_codes(shape: tuple[int, int], bits: int) -> None:
    codes = torch.randint(0, 1 << bits, shape, dtype=torch.uint8)
    words = planes.to_words(codes, bits)
    assert words.shape == (shape[0], planes.num_blocks(shape[1]), planes.PLANE)
    assert torch.equal(planes.from_words(words, bits, shape[1]), codes)


def test_a_plane_has_consecutive_inputs() -> None:
    codes = torch.zeros(1, 512, dtype=torch.uint8)
    codes[0, 256 + 3 * planes.PLANE + 5] = 0b1011
    words = planes.to_words(codes, 4)
    assert int(words[0, 1, 5]) == 0b1011 << 12
    assert int(words.abs().sum()) == 0b1011 << 12


@pytest.mark.parametrize("group", [0, 32, 64, 128, 256])
@pytest.mark.parametrize("name", ["int4", "int3", "int2"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_integer_codes_are_kept(shape: tuple[int, int], name: str, group: int) -> None:
    encoded = encode(delta_of(shape), Scheme.of(name, group=group))
    slots = DeltaSlots.allocate(2, shape, 2 if name == "int2" else 4, group, CPU)
    slots.load(1, encoded)
    torch.testing.assert_close(slots.dense(1), decode(encoded), rtol=1e-6, atol=0.0)
    assert slots.is_loaded.tolist() == [0, 1]
    assert not slots.dense(0).any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_signs_are_kept(shape: tuple[int, int]) -> None:
    encoded = encode(delta_of(shape), Scheme.parse("sign(salient=0)"))
    slots = DeltaSlots.allocate(1, shape, 1, 0, CPU)
    slots.load(0, encoded)
    torch.testing.assert_close(slots.dense(0), decode(encoded), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_masks_over_a_shared_vector_are_kept(shape: tuple[int, int]) -> None:
    shared = int4(shape)
    values = decode(shared)
    encoded = masked.encode(delta_of(shape, seed=1) > 0, shared, values, 0.7)
    vector = DeltaSlots.allocate(1, shape, 4, 64, CPU)
    vector.load(0, shared)
    slots = DeltaSlots.over(2, vector)
    slots.load(1, encoded)
    torch.testing.assert_close(slots.dense(1), decode(encoded), rtol=1e-6, atol=0.0)


def test_the_parts_of_a_fused_linear_follow_each_other() -> None:
    parts = [int4((70, 300)), int4((30, 300))]
    slots = DeltaSlots.allocate(1, (100, 300), 4, 64, CPU)
    slots.load(0, parts[0])
    slots.load(0, parts[1], start=70)
    expected = torch.cat([decode(part) for part in parts])
    torch.testing.assert_close(slots.dense(0), expected, rtol=1e-6, atol=0.0)


def test_loading_again_keeps_addresses_and_clearing_empties() -> None:
    slots = DeltaSlots.allocate(1, (70, 300), 4, 64, CPU)
    address = slots.words.data_ptr()
    slots.load(0, int4((70, 300)))
    other = encode(delta_of((70, 300), seed=5), Scheme.of("int4", group=64))
    slots.load(0, other)
    assert slots.words.data_ptr() == address
    torch.testing.assert_close(slots.dense(0), decode(other), rtol=1e-6, atol=0.0)
    slots.clear(0)
    assert not slots.dense(0).any()
    assert not slots.is_loaded.any()


def test_low_rank_parts_have_ranks_of_their_own() -> None:
    first = lowrank.encode(torch.randn(3, 50), torch.randn(20, 3), 0.5)
    second = lowrank.encode(torch.randn(5, 50), torch.randn(10, 5), 2.0)
    slots = FactorSlots.allocate(1, (30, 50), 8, torch.float32, CPU)
    slots.load(0, first)
    slots.load(0, second, start=20, first_rank=3)
    expected = torch.cat([decode(first), decode(second)])
    torch.testing.assert_close(slots.dense(0), expected, rtol=1e-5, atol=1e-5)


def some_rows() -> EncodedDelta:
    delta = delta_of((70, 300))
    delta[9:] = 0.0
    return encode(delta, Scheme.of("int4", group=64))


@pytest.mark.parametrize(
    ("delta", "message"),
    [
        (lambda: encode(delta_of((70, 300)), Scheme.of("int8", group=64)), "4 bits"),
        (lambda: int4((70, 300), group=128), "groups of 64"),
        (lambda: int4((71, 300)), "pass 70"),
        (lambda: int4((70, 301)), "300 inputs"),
        (lambda: encode(delta_of((70, 300)), Scheme.parse("sign")), "affine"),
        (some_rows, "some rows"),
    ],
)
def test_what_does_not_fit_is_refused(delta: Callable[[], EncodedDelta], message: str) -> None:
    slots = DeltaSlots.allocate(1, (70, 300), 4, 64, CPU)
    with pytest.raises(InvalidSchemeError, match=message):
        slots.load(0, delta())


@pytest.mark.parametrize(("bits", "group"), [(8, 64), (4, 48), (2, 16)])
def test_codings_without_a_kernel_are_refused(bits: int, group: int) -> None:
    with pytest.raises(InvalidSchemeError, match="no kernel"):
        DeltaSlots.allocate(1, (64, 256), bits, group, CPU)
