"""Lossless coding of small symbols, each under the distribution of its context.

The coder is an asymmetric numeral system (Duda, arXiv:1311.2540) with one static distribution per
context. A stream is little-endian and holds all that decoding needs but the contexts:

    uint8             version
    uint64            number of symbols
    uint16            number of tables
    uint8[3] each     a table's context, first and last symbol; contexts ascend
    uint8[...]        table by table, how often each symbol from the first to the last occurs,
                      rounded (see `_rounded`)
    uint32[...]       the coder's words

Symbols are coded a chunk at a time, and within a chunk context by context in their own order. A
context with one symbol takes no words.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from constriction import stream as coding  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import Tensor

VERSION = 1
_ALPHABET = 256
_CHUNK = 1 << 18
_PIECE = 1 << 14  # symbols that are decoded at once: other threads wait meanwhile
_HEADER = struct.Struct("<BQH")
_TABLE_BYTES = 3
_WORD = np.dtype("<u4")

Bytes = NDArray[np.uint8]
Group = tuple[int, slice | NDArray[np.int64], int]


class EntropyError(ValueError):
    """A stream that is damaged, or that codes other symbols or contexts than those asked for."""


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """Rounded counts (uint8, at least one) of the symbols from `first` on; a `model` if several."""

    first: int
    counts: Bytes
    model: Any


def encode(symbols: Tensor, contexts: Tensor | None = None) -> Tensor:
    """Code uint8 symbols [n], given uint8 contexts [n] if any, as a uint8 stream [m]."""
    values, given = _array(symbols), _contexts(contexts, symbols.numel())
    tables = _count(values, given)
    coder = coding.stack.AnsCoder()
    # The coder is a stack: what goes in last comes out first.
    for chunk in reversed(_chunks(len(values))):
        for context, members, _ in reversed(_groups(given, chunk)):
            table = tables[context]
            if table.model is not None:
                steps = values[chunk][members].astype(np.int32) - table.first
                coder.encode_reverse(steps, table.model)
    words = coder.get_compressed().astype(_WORD).tobytes()
    stream = _written(tables, len(values)) + words
    return torch.frombuffer(bytearray(stream), dtype=torch.uint8)


def decode(stream: Tensor, num_symbols: int, contexts: Tensor | None = None) -> Tensor:
    """Invert `encode`: the uint8 symbols [num_symbols].

    Damage raises EntropyError or, where it makes a stream of its own, yields other symbols.
    """
    given = _contexts(contexts, num_symbols)
    tables, words = _read(_array(stream).tobytes(), num_symbols)
    coder = coding.stack.AnsCoder(words)
    symbols = torch.empty(num_symbols, dtype=torch.uint8)
    values = _array(symbols)
    for chunk in _chunks(num_symbols):
        for context, members, num_members in _groups(given, chunk):
            if context not in tables:
                raise EntropyError(f"the stream codes no symbols of context {context}")
            table = tables[context]
            if table.model is None:
                values[chunk][members] = table.first
            else:
                values[chunk][members] = _steps(coder, table.model, num_members) + table.first
    if not coder.is_empty():
        raise EntropyError("the stream holds more than the symbols asked for")
    return symbols


def _steps(coder: Any, model: Any, num_symbols: int) -> NDArray[np.int32]:
    """The next symbols of one model, from its first symbol on."""
    starts = range(0, num_symbols, _PIECE)
    pieces = [coder.decode(model, min(_PIECE, num_symbols - start)) for start in starts]
    return np.concatenate(pieces)


def _array(values: Tensor) -> Bytes:
    array: Bytes = values.contiguous().numpy()
    return array


def _contexts(contexts: Tensor | None, num_symbols: int) -> Bytes | None:
    if contexts is None:
        return None
    if contexts.numel() != num_symbols:
        raise EntropyError(f"{num_symbols} symbols need as many contexts, got {contexts.numel()}")
    return _array(contexts)


def _chunks(num_symbols: int) -> list[slice]:
    return [slice(at, min(at + _CHUNK, num_symbols)) for at in range(0, num_symbols, _CHUNK)]


def _groups(contexts: Bytes | None, chunk: slice) -> list[Group]:
    """The contexts that occur in a chunk, ascending; where in it, and how often, each does."""
    if contexts is None:
        return [(0, slice(None), chunk.stop - chunk.start)]
    order = np.argsort(contexts[chunk], kind="stable")
    sizes = np.bincount(contexts[chunk])
    ends = sizes.cumsum()
    return [
        (context, order[ends[context] - size : ends[context]], size)
        for context, size in enumerate(sizes.tolist())
        if size
    ]


def _count(values: Bytes, contexts: Bytes | None) -> dict[int, _Table]:
    """A table for each context that occurs, ascending."""
    counts = np.zeros(_ALPHABET * _ALPHABET, np.int64)
    for chunk in _chunks(len(values)):
        cells = values[chunk].astype(np.int64)
        if contexts is not None:
            cells += contexts[chunk].astype(np.int64) * _ALPHABET
        counts += np.bincount(cells, minlength=len(counts))
    rows = counts.reshape(_ALPHABET, _ALPHABET)
    return {context: _counted(row) for context, row in enumerate(rows) if row.any()}


def _counted(counts: NDArray[np.int64]) -> _Table:
    """The table of one context, from how often each of the 256 symbols occurs."""
    (present,) = counts.nonzero()
    first, last = int(present[0]), int(present[-1])
    return _table(first, _rounded(counts[first : last + 1]))


def _table(first: int, counts: Bytes) -> _Table:
    # A symbol without a count gets the coder's smallest probability.
    is_sure = len(counts) == 1
    model = None if is_sure else coding.model.Categorical(_unrounded(counts), perfect=False)
    return _Table(first, counts, model)


def _rounded(counts: NDArray[np.int64]) -> Bytes:
    """Counts below 2**34 as uint8: the four leading bits, and how many bits follow them."""
    dropped = np.maximum(np.frexp(counts.astype(np.float64))[1] - 4, 0).astype(np.int64)
    rounded: Bytes = (8 * dropped + (counts >> dropped)).astype(np.uint8)
    return rounded


def _unrounded(counts: Bytes) -> NDArray[np.float64]:
    """Undo `_rounded` but for the dropped bits, which become zero."""
    dropped = np.maximum(counts.astype(np.int64) // 8 - 1, 0)
    whole: NDArray[np.int64] = (counts - 8 * dropped) << dropped
    return whole.astype(np.float64)


def _written(tables: dict[int, _Table], num_symbols: int) -> bytes:
    """All of a stream but the coder's words."""
    rows = [
        bytes((context, table.first, table.first + len(table.counts) - 1))
        for context, table in tables.items()
    ]
    counts = [table.counts.tobytes() for table in tables.values()]
    return b"".join([_HEADER.pack(VERSION, num_symbols, len(tables)), *rows, *counts])


def _read(stream: bytes, num_symbols: int) -> tuple[dict[int, _Table], NDArray[np.uint32]]:
    """The tables of a stream by context, and the coder's words."""
    if len(stream) < _HEADER.size:
        raise EntropyError("the stream is cut off")
    version, num_coded, num_tables = _HEADER.unpack_from(stream)
    if version != VERSION:
        raise EntropyError(f"the stream has version {version}; this release reads {VERSION}")
    if num_coded != num_symbols:
        raise EntropyError(f"the stream codes {num_coded} symbols, not {num_symbols}")
    tables = {}
    end = _HEADER.size + _TABLE_BYTES * num_tables
    for context, first, last in _rows(stream[_HEADER.size : end], num_tables):
        start, end = end, end + last - first + 1
        tables[context] = _checked_table(first, last, stream[start:end])
    words = stream[end:]
    # The coder's last word is never zero.
    if len(words) % _WORD.itemsize or words[-_WORD.itemsize :] == bytes(_WORD.itemsize):
        raise EntropyError("the coder's words are cut off")
    return tables, np.frombuffer(words, _WORD).astype(np.uint32)


def _rows(table: bytes, num_tables: int) -> Iterator[tuple[int, ...]]:
    """Context, first and last symbol of each table."""
    if len(table) < _TABLE_BYTES * num_tables:
        raise EntropyError("the stream is cut off")
    rows = list(struct.iter_unpack("<BBB", table))
    contexts = [context for context, _, _ in rows]
    if contexts != sorted(set(contexts)) or any(first > last for _, first, last in rows):
        raise EntropyError("the stream's tables are malformed")
    yield from rows


def _checked_table(first: int, last: int, counts: bytes) -> _Table:
    if len(counts) != last - first + 1 or not any(counts):
        raise EntropyError("the stream's tables are cut off or empty")
    return _table(first, np.frombuffer(counts, np.uint8))
