"""Encoded deltas on disk: parts with small codes are entropy-coded where that pays.

A delta in memory holds packed bits; what lies in a shard are those bits, or the bytes that
`entropy` made of their symbols. A mask over a shared vector is coded given the vector's own codes:
which of its weights a task keeps depends on their size.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer import entropy
from taskmix_composer.bank.delta import EncodedDelta
from taskmix_composer.bank.records import DeltaRecord, PartRecord
from taskmix_composer.errors import BankFormatError
from taskmix_composer.layout import (
    grouped,
    matrix_shape,
    num_groups,
    pack_codes,
    ungrouped,
    unpack_codes,
)
from taskmix_composer.tensorfile import DTYPE_NAMES

_LARGEST_SHARES = {"mask": 7 / 8, "codes": 3 / 4}
"""Coded bytes are kept if they are at most this share of the packed ones.

Decoding takes seconds per hundred million symbols at each load, and more where there are more of
them to tell apart: smaller savings are not worth it.
"""


@dataclass(frozen=True, slots=True)
class StoredPart:
    """A part's record and the tensor that lies in the shard."""

    record: PartRecord
    values: Tensor


def stored_parts(delta: EncodedDelta) -> dict[str, StoredPart]:
    """A delta's own tensors as they are written."""
    return {part: _stored(delta, part, values) for part, values in delta.tensors().items()}


def loaded_parts(
    record: DeltaRecord, stored: Mapping[str, Tensor], shared: EncodedDelta | None
) -> dict[str, Tensor]:
    """Invert `stored_parts`; BankFormatError where the bytes code something else."""
    parts = {}
    for part, values in stored.items():
        expected = record.parts[part]
        if expected.num_coded is None:
            parts[part] = values
        else:
            parts[part] = _unpacked(record, part, values, shared)
    return parts


def symbol_bits(codec: str, part: str, params: Mapping[str, int | float]) -> int | None:
    """Bits of one packed symbol of a part, or None where a part is not made of symbols."""
    if part == "mask":
        return 1
    return int(params.get("bits", 0)) if part == "codes" and codec in ("affine", "sparse") else None


def _stored(delta: EncodedDelta, part: str, values: Tensor) -> StoredPart:
    plain = PartRecord(DTYPE_NAMES[values.dtype], tuple(values.shape))
    bits = symbol_bits(delta.codec, part, delta.params)
    if bits is None or values.numel() == 0:
        return StoredPart(plain, values)
    symbols = unpack_codes(values, bits, values.shape[1] // bits * 8)
    coded = entropy.encode(symbols.flatten(), _contexts(part, delta.shared, symbols.shape[1]))
    if coded.numel() > _LARGEST_SHARES[part] * values.numel():
        return StoredPart(plain, values)
    return StoredPart(PartRecord(plain.dtype, plain.shape, coded.numel()), coded)


def _unpacked(record: DeltaRecord, part: str, coded: Tensor, shared: EncodedDelta | None) -> Tensor:
    bits = symbol_bits(record.codec, part, record.params)
    shape = record.parts[part].shape
    if bits is None or not 1 <= bits <= 8 or len(shape) != 2 or shape[1] % bits:
        raise BankFormatError(f"part {part} of shape {shape} cannot be entropy-coded")
    lanes = shape[1] // bits * 8
    contexts = _contexts(part, shared, lanes)
    if contexts is not None and contexts.numel() != shape[0] * lanes:
        raise BankFormatError(f"part {part} does not fit the vector it is coded over")
    try:
        symbols = entropy.decode(coded, shape[0] * lanes, contexts)
    except entropy.EntropyError as error:
        raise BankFormatError(f"part {part} cannot be decoded: {error}") from None
    if symbols.numel() and int(symbols.max()) >> bits:
        raise BankFormatError(f"part {part} holds codes of more than {bits} bits")
    return pack_codes(symbols.view(shape[0], lanes), bits)


def _contexts(part: str, shared: EncodedDelta | None, lanes: int) -> Tensor | None:
    """For a mask over integer codes: their signed steps from zero, uint8 [rows * lanes]."""
    if part != "mask" or shared is None or shared.codec != "affine":
        return None
    rows, columns = matrix_shape(shared.coded_shape)
    bits, group = int(shared.params["bits"]), int(shared.params["group"]) or columns
    codes = unpack_codes(shared.parts["codes"], bits, columns)
    zeros = shared.parts["zeros"].expand(rows, num_groups(columns, group)).unsqueeze(2)
    steps = ungrouped(grouped(codes, group) - zeros, columns)  # modulo 256
    return torch.nn.functional.pad(steps, (0, lanes - columns)).flatten()
