"""How codes lie on a device, defined here and nowhere else.

A tile is TILE outputs by BLOCK inputs. For each output it holds PLANE words of eight codes: code
j of word w belongs to input j * PLANE + w. One plane of codes, taken out of all words with one
shift, thus is a matrix [TILE, PLANE] whose inputs are consecutive; a kernel multiplies it without
moving a code between registers. Tiles follow each other along the inputs, so that what a program
reads is contiguous. Inputs are padded with zero codes, outputs with whatever is there.
"""

import torch
from torch import Tensor

from taskmix_composer.layout import num_groups

TILE = 64
PLANE = 32
NUM_PLANES = 8
BLOCK = NUM_PLANES * PLANE

WORD_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
"""A word's dtype by the bits of a code."""


def num_tiles(rows: int) -> int:
    """Tiles that `rows` outputs need."""
    return num_groups(rows, TILE)


def num_blocks(columns: int) -> int:
    """Blocks that `columns` inputs need."""
    return num_groups(columns, BLOCK)


def to_words(codes: Tensor, bits: int) -> Tensor:
    """Codes, uint8 [rows, columns], to words [rows, blocks, PLANE]."""
    rows, columns = codes.shape
    blocks = num_blocks(columns)
    padded = torch.nn.functional.pad(codes, (0, blocks * BLOCK - columns))
    planes = padded.view(rows, blocks, NUM_PLANES, PLANE).to(torch.int32)
    words = torch.zeros(rows, blocks, PLANE, dtype=torch.int32, device=codes.device)
    for plane in range(NUM_PLANES):
        words |= planes[:, :, plane] << (plane * bits)
    return words.to(WORD_DTYPES[bits])


def from_words(words: Tensor, bits: int, columns: int) -> Tensor:
    """Invert `to_words`: words [rows, blocks, PLANE] to uint8 [rows, columns]."""
    shifts = torch.arange(0, NUM_PLANES * bits, bits, dtype=torch.int32, device=words.device)
    planes = (words.to(torch.int32).unsqueeze(2) >> shifts.view(-1, 1)) & ((1 << bits) - 1)
    return planes.to(torch.uint8).flatten(1)[:, :columns]


def to_metas(scales: Tensor, zeros: Tensor) -> Tensor:
    """A group's float16 scale and its uint8 zero code in one int32: the scale's bits are low."""
    return scales.view(torch.int16).to(torch.int32) & 0xFFFF | zeros.to(torch.int32) << 16


def from_metas(metas: Tensor) -> tuple[Tensor, Tensor]:
    """Invert `to_metas`: scales and zeros, both float32 of the same shape."""
    scales = (metas & 0xFFFF).to(torch.int16).view(torch.float16)
    return scales.float(), (metas >> 16).float()
