"""What is packed, what is not, and what it takes."""

from pathlib import Path

import pytest
import torch

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.config import Scheme
from taskmix_composer.kernels.native import library
from taskmix_composer.kernels.native.library import Level
from taskmix_composer.kernels.native.memory import Arena, aligned
from taskmix_composer.kernels.native.packing import cut, pack
from taskmix_composer.quant import encode
from tests.oracle.kernels.native_cases import KINDS, by_scheme, kernels_at, shared_delta, weights

SHAPE = (64, 128)


@pytest.mark.parametrize(
    "scheme", ["dense", "dense16", "lowrank(rank=4)", "int4(group=24)", "int8(group=1)"]
)
def test_what_the_kernels_have_no_form_for(scheme: str) -> None:
    assert pack(by_scheme(scheme)(SHAPE, 0)) is None


def test_an_offset_over_what_has_no_form_has_none() -> None:
    own = by_scheme("int4")(SHAPE, 0)
    over = by_scheme("dense")(SHAPE, 1)
    assert pack(EncodedDelta(own.codec, SHAPE, own.params, own.parts, shared=over)) is None


def test_a_delta_of_no_rows_adds_nothing() -> None:
    own = by_scheme("sign")(SHAPE, 0)
    none = {part: values[:0] for part, values in own.parts.items()}
    rows = torch.empty(0, dtype=torch.int32)
    assert pack(EncodedDelta(own.codec, SHAPE, own.params, none, rows)) == ()


@pytest.mark.parametrize("kind", ["mask over int4", "mask over sign", "offset"])
def test_deltas_over_a_shared_one_share_its_strips(kind: str) -> None:
    first, second = (KINDS[kind](SHAPE, seed) for seed in (0, 1))
    assert first.shared is not None
    shared = pack(first.shared)
    assert shared is not None
    packed = [pack(delta, shared) or () for delta in (first, second)]
    for parts in packed:
        for over, part in zip(shared, parts, strict=False):
            assert part.strips is over.strips
            assert part.num_bytes < over.num_bytes
            assert not part.owns_strips
    # By itself a delta owns what it brings.
    alone = pack(first) or ()
    assert sum(part.num_bytes for part in alone) > sum(part.num_bytes for part in packed[0])


def test_int4_takes_its_codes_scales_and_zeros() -> None:
    (packed,) = pack(by_scheme("int4(group=64)")(SHAPE, 0)) or ()
    assert packed.shape == SHAPE
    assert packed.num_bytes == 64 * 128 // 2 + 64 * 2 * (2 + 1)
    mask = torch.rand(SHAPE) < 0.5
    assert cut(packed, mask).num_bytes == 64 * 128 // 8
    assert cut(packed, mask).strips is packed.strips


def test_packing_and_its_arena_hold_nothing_of_the_bank() -> None:
    """Packed buffers are copies, aligned for the widest loads."""
    arena = Arena(chunk_bytes=1 << 20)
    for kind in KINDS:
        delta = KINDS[kind](SHAPE, 0)
        theirs = {tensor.data_ptr() for tensor in delta.tensors().values()}
        for part in pack(delta, (), arena) or ():
            buffers = (part.strips.data, part.mask)
            assert all(buffer.data_ptr() % 64 == 0 for buffer in buffers if buffer is not None)
            assert part.strips.data.stride(0) % 64 == 0
            assert part.rows is None or part.rows.data_ptr() not in theirs


def test_an_arena_hands_out_pieces_that_do_not_overlap() -> None:
    arena = Arena(chunk_bytes=4096)
    pieces = [arena.empty(size) for size in (1, 64, 1000, 5 << 20, 4000, 3)]
    for index, piece in enumerate(pieces):
        piece.fill_(index)
    for index, piece in enumerate(pieces):
        assert (piece == index).all()
        assert piece.data_ptr() % 64 == 0
    assert aligned(3 << 20).numel() == 3 << 20


def test_a_missing_library_or_instruction_set_is_none(tmp_path: Path) -> None:
    assert library.load(None, tmp_path / "absent.so") is None
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"not a library")
    assert library.load(None, broken) is None


def test_the_best_level_is_the_default() -> None:
    best = kernels_at(Level.AVX2).level
    for level in Level:
        best = max(best, level) if library.load(level) else best
    found = library.load()
    assert found is not None
    assert found.level is best
    assert library.available()
    assert library.name() == best.name.lower()


def test_codes_of_three_bits_are_held_as_four() -> None:
    (three,) = pack(encode(weights(SHAPE, 0), Scheme.parse("int3"))) or ()
    (four,) = pack(shared_delta("int4", SHAPE)) or ()
    assert three.num_bytes == four.num_bytes
