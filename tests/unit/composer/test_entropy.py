import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from taskmix_composer.entropy import EntropyError, decode, encode

# Version 1, three symbols, no context: one table of context 0 from symbol 0 to 1, which counts two
# zeros and a one; then the coder's only word.
GOLDEN = bytes.fromhex("0103000000000000000100000001020100000001")
# Version 1, five symbols, two tables: context 2 knows only symbol 9, context 7 symbols 250 to 252
# (of which 251 does not occur).
GOLDEN_WITH_CONTEXTS = bytes.fromhex("010500000000000000020002090907fafc0201000202000002")
HEADER_BYTES = 11

SMALL = st.integers(0, 255)
PAIRS = st.lists(st.tuples(st.one_of(SMALL, st.integers(0, 3)), st.integers(0, 4)), max_size=60)


def octets(values: bytes | list[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.uint8)


def bernoulli(probabilities: Tensor, seed: int = 0) -> Tensor:
    """One uint8 coin for each probability."""
    generator = torch.Generator().manual_seed(seed)
    coins = torch.rand(probabilities.shape, generator=generator) < probabilities
    return coins.to(torch.uint8)


def coin_bits(probability: float) -> float:
    other = 1 - probability
    return -probability * math.log2(probability) - other * math.log2(other)


def decode_damaged(stream: Tensor, num_symbols: int, contexts: Tensor | None) -> None:
    """Decode, and demand the named error or symbols of the right number and kind."""
    try:
        symbols = decode(stream, num_symbols, contexts)
    except EntropyError:
        return
    assert symbols.shape == (num_symbols,)
    assert symbols.dtype == torch.uint8


@given(pairs=PAIRS)
def test_symbols_come_back_given_their_contexts(pairs: list[tuple[int, int]]) -> None:
    symbols = octets([symbol for symbol, _ in pairs])
    contexts = octets([context for _, context in pairs])
    assert torch.equal(decode(encode(symbols, contexts), len(pairs), contexts), symbols)
    assert torch.equal(decode(encode(symbols), len(pairs)), symbols)


def test_long_inputs_come_back() -> None:
    generator = torch.Generator().manual_seed(0)
    contexts = torch.randint(0, 256, (700_000,), generator=generator, dtype=torch.uint8)
    symbols = (torch.randn(700_000, generator=generator) * contexts / 4).clamp(0, 255)
    symbols = symbols.to(torch.uint8)
    assert torch.equal(decode(encode(symbols, contexts), len(symbols), contexts), symbols)
    assert torch.equal(decode(encode(symbols), len(symbols)), symbols)


def test_strided_inputs_come_back() -> None:
    symbols, contexts = octets(range(100))[::3], octets(range(100))[:: -1 % 3 + 1][:34]
    assert torch.equal(decode(encode(symbols, contexts), 34, contexts), symbols)


def test_bytes_are_golden() -> None:
    assert bytes(encode(octets([0, 1, 0])).tolist()) == GOLDEN
    assert decode(octets(GOLDEN), 3).tolist() == [0, 1, 0]
    symbols, contexts = octets([9, 250, 252, 9, 252]), octets([2, 7, 7, 2, 7])
    assert bytes(encode(symbols, contexts).tolist()) == GOLDEN_WITH_CONTEXTS
    assert torch.equal(decode(octets(GOLDEN_WITH_CONTEXTS), 5, contexts), symbols)


@pytest.mark.parametrize("probability", [0.01, 0.1, 0.5])
def test_a_mask_costs_its_entropy(probability: float) -> None:
    mask = bernoulli(torch.full((200_000,), probability))
    bits = 8 * encode(mask).numel() / len(mask)
    entropy = coin_bits(float(mask.double().mean()))
    assert entropy <= bits <= 1.02 * entropy


def test_a_mask_costs_its_entropy_given_contexts() -> None:
    chances = (0.05, 0.3, 0.5, 0.9)
    contexts = torch.arange(400_000).remainder_(4).to(torch.uint8)
    mask = bernoulli(torch.tensor(chances)[contexts.long()])
    bits = 8 * encode(mask, contexts).numel() / len(mask)
    assert bits <= 1.02 * sum(map(coin_bits, chances)) / 4
    assert bits < 0.8 * 8 * encode(mask).numel() / len(mask)


def test_a_wide_alphabet_costs_its_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    symbols = (torch.randn(200_000, generator=generator) * 20 + 128).clamp(0, 255).to(torch.uint8)
    shares = symbols.bincount().double() / len(symbols)
    entropy = float(-torch.special.xlogy(shares, shares).sum() / math.log(2))
    assert 8 * encode(symbols).numel() / len(symbols) <= 1.005 * entropy


@pytest.mark.parametrize("num_symbols", [1, 1_000_000])
def test_a_context_with_one_symbol_costs_its_table_only(num_symbols: int) -> None:
    symbols = torch.full((num_symbols,), 255, dtype=torch.uint8)
    stream = encode(symbols)
    assert stream.numel() == HEADER_BYTES + 4
    assert torch.equal(decode(stream, num_symbols), symbols)


def test_nothing_costs_a_header() -> None:
    stream = encode(octets([]))
    assert stream.numel() == HEADER_BYTES
    assert decode(stream, 0).numel() == 0


@pytest.mark.parametrize(
    ("stream", "num_symbols", "match"),
    [
        (GOLDEN, 4, "3 symbols, not 4"),
        (b"\x02" + GOLDEN[1:], 3, "version 2"),
        (GOLDEN[:5], 3, "cut off"),
        (GOLDEN[:12], 3, "cut off"),
        (GOLDEN[:15], 3, "cut off"),
        (GOLDEN[:-1], 3, "words are cut off"),
        (GOLDEN[:-4] + bytes(4), 3, "words are cut off"),
        (GOLDEN + b"\x00\x00\x00\x01", 3, "more than the symbols"),
        (GOLDEN[:14] + bytes(2) + GOLDEN[16:], 3, "empty"),
        (GOLDEN[:12] + b"\x01\x00" + GOLDEN[14:], 3, "malformed"),
        (GOLDEN[:11] + b"\x05" + GOLDEN[12:], 3, "no symbols of context 0"),
        (GOLDEN_WITH_CONTEXTS[:14] + b"\x02" + GOLDEN_WITH_CONTEXTS[15:], 5, "malformed"),
    ],
)
def test_damage_is_named(stream: bytes, num_symbols: int, match: str) -> None:
    with pytest.raises(EntropyError, match=match):
        decode(octets(stream), num_symbols)


def test_contexts_must_fit() -> None:
    with pytest.raises(EntropyError, match="as many contexts"):
        encode(octets([1, 2]), octets([0]))
    with pytest.raises(EntropyError, match="as many contexts"):
        decode(octets(GOLDEN), 3, octets([0]))


@given(stream=st.binary(max_size=80), num_symbols=st.integers(0, 40))
def test_random_bytes_are_contained(stream: bytes, num_symbols: int) -> None:
    decode_damaged(octets(stream), num_symbols, None)


@given(
    num_symbols=st.integers(0, 40),
    context=st.integers(0, 2),
    first=SMALL,
    counts=st.lists(SMALL, min_size=1, max_size=8),
    words=st.binary(max_size=40),
)
def test_random_tables_and_words_are_contained(
    num_symbols: int, context: int, first: int, counts: list[int], words: bytes
) -> None:
    last = min(first + len(counts) - 1, 255)
    header = [1, *num_symbols.to_bytes(8, "little"), 1, 0, context, first, last]
    contexts = torch.full((num_symbols,), 1, dtype=torch.uint8)
    for given_contexts in (None, contexts):
        decode_damaged(octets(bytes([*header, *counts]) + words), num_symbols, given_contexts)


@given(pairs=PAIRS.filter(bool), data=st.data())
def test_damaged_streams_are_contained(pairs: list[tuple[int, int]], data: st.DataObject) -> None:
    contexts = octets([context for _, context in pairs])
    stream = encode(octets([symbol for symbol, _ in pairs]), contexts)
    place = data.draw(st.integers(0, stream.numel() - 1))
    decode_damaged(stream[:place], len(pairs), contexts)
    decode_damaged(stream, len(pairs) + 1, torch.nn.functional.pad(contexts, (0, 1)))
    decode_damaged(stream, len(pairs), contexts.flip(0))
    decode_damaged(stream, len(pairs), contexts ^ 1)
    stream[place] ^= 1 << data.draw(st.integers(0, 7))
    decode_damaged(stream, len(pairs), contexts)
