"""Memory for packed deltas: aligned for vector loads, and in huge pages where it is large.

Reading packed deltas runs at the speed of memory; with pages of 4 KB, looking up where they lie
would take a good part of it.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

ALIGNMENT = 64
CHUNK_BYTES = 16 << 20
_PAGE_BYTES = 2 << 20

Memory = Callable[[int], Tensor]
"""Gives uint8 [num_bytes] of any content, aligned to 64 bytes."""


@dataclass(slots=True, eq=False)
class Arena:
    """Hands out pieces of large chunks.

    A chunk is given back once nothing refers to any of its pieces: use one arena for what is
    dropped together, the deltas of a task.
    """

    chunk_bytes: int = CHUNK_BYTES
    _chunk: Tensor = field(init=False, default_factory=lambda: torch.empty(0, dtype=torch.uint8))

    def empty(self, num_bytes: int) -> Tensor:
        """uint8 [num_bytes] of any content, aligned to 64 bytes."""
        size = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        if size > self._chunk.numel():
            chunk = mapped(max(size, self.chunk_bytes))
            if chunk.numel() - size <= self._chunk.numel():
                return chunk[:num_bytes]
            self._chunk = chunk
        piece, self._chunk = self._chunk[:num_bytes], self._chunk[size:]
        return piece


def aligned(num_bytes: int) -> Tensor:
    """uint8 [num_bytes] of any content, aligned to 64 bytes, in memory of its own."""
    if num_bytes >= _PAGE_BYTES:
        return mapped(num_bytes)[:num_bytes]
    buffer = torch.empty(num_bytes + ALIGNMENT, dtype=torch.uint8)
    start = -buffer.data_ptr() % ALIGNMENT
    return buffer[start : start + num_bytes]


def mapped(num_bytes: int) -> Tensor:
    """uint8 zeros [at least num_bytes] in pages of their own, huge ones where the system has any.

    Pages that are never written to take no memory.
    """
    size = -(-num_bytes // _PAGE_BYTES) * _PAGE_BYTES
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)
