"""What each scheme would cost a tensor, and how much of the tensor's effect it would lose.

A linear layer learns by steps gradient * input, so a delta's rows lie in the directions of the
inputs that the fine-tuning saw, and its columns in those of the gradients at the outputs. Random
combinations of them stand for inputs x and gradients g, and the mean of (g . error @ x) ** 2, the
squared first-order effect of the error on what was learnt, is measured as a share of that of the
delta itself. A plain squared error would misjudge what averages out in a product: an error of
`sparse` is several times as long as the delta and is hardly felt.

A table of tokens is used row by row, and nothing averages out between rows: there the mean is of
|error @ x| ** 2.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer.bank import EncodedDelta
from taskmix_composer.bank.manifest import part_key
from taskmix_composer.bank.storage import stored_parts
from taskmix_composer.budget import Choice
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.encoding import encoded_deltas, is_adapter
from taskmix_composer.forms import Coding
from taskmix_composer.layout import matrix_shape
from taskmix_composer.progress import Meter
from taskmix_composer.quant import decode, encode
from taskmix_composer.taskvector import Source, read_delta
from taskmix_composer.tensorfile import DTYPE_NAMES


def _schemes(*texts: str) -> tuple[Scheme, ...]:
    return tuple(map(Scheme.parse, texts))


# From small to large.
CANDIDATES = _schemes(
    "sparse(density=0.002)",
    "lowrank(rank=1)",
    "sparse(density=0.005)",
    "sparse(density=0.01)",
    "sparse(density=0.02)",
    "sparse(density=0.05)",
    "sparse(density=0.1)",
    "sparse(density=0.2)",
    "int2",
    "int3",
    "int4",
)
"""The schemes to choose from for a layer's matrix."""
TABLE_CANDIDATES = _schemes(
    "lowrank(rank=1)",
    "lowrank(rank=4)",
    "lowrank(rank=16)",
    "sparse(density=0.05)",
    "sparse(density=0.1)",
    "sparse(density=0.2)",
    "int2",
    "int3",
    "int4",
)
"""The schemes to choose from for a table of tokens."""
_TABLE_ENDINGS = ("embed_tokens.weight", "wte.weight", "lm_head.weight")
VECTOR = Scheme("dense16")
"""The scheme of tensors of one axis, which are always kept."""
SHARD_BYTES = 64
"""At least what a shard has besides its tensors and their fields: length, metadata, padding."""
_NUM_PROBES = 128
_SEED = 0
# No offset within a shard has more digits.
_LARGEST_OFFSET = 10**12


@dataclass(frozen=True, slots=True)
class Measured:
    """A delta's Frobenius norm, and ways to store it, with the share of its effect that is lost."""

    norm: float
    choices: tuple[Choice, ...]

    @property
    def is_lossy(self) -> bool:
        return any(choice.error for choice in self.choices)


@dataclass(frozen=True, slots=True, eq=False)
class Probes:
    """What stands for a layer's inputs, float32 [columns, probes], and gradients [probes, rows].

    Without gradients every row counts by itself.
    """

    inputs: Tensor
    gradients: Tensor | None

    @classmethod
    def of_layer(cls, delta: Tensor) -> "Probes":
        """Random combinations of the rows and of the columns of a matrix [rows, columns]."""
        rows, columns = delta.shape
        generator = torch.Generator().manual_seed(_SEED)
        of_rows = torch.randn(_NUM_PROBES, rows, generator=generator)
        of_columns = torch.randn(columns, _NUM_PROBES, generator=generator)
        return cls((of_rows @ delta).T, (delta @ of_columns).T)

    @classmethod
    def of_table(cls, delta: Tensor) -> "Probes":
        """Random combinations of the rows."""
        generator = torch.Generator().manual_seed(_SEED)
        return cls((torch.randn(_NUM_PROBES, len(delta), generator=generator) @ delta).T, None)

    def effect(self, matrix: Tensor) -> float:
        """The squared effect of adding a matrix, in units of the probes'."""
        outputs = matrix @ self.inputs
        if self.gradients is not None:
            outputs = self.gradients @ outputs
        return float(outputs.double().square().sum())


def measure_task(base: Checkpoint, source: Source, meter: Meter) -> Iterator[tuple[str, Measured]]:
    """Measure every tensor that a task changed, one tensor at a time.

    Factors of an adapter are stored as they are: the one choice of each.
    """
    if is_adapter(source):
        yield from _measure_adapter(base, source, meter)
        return
    for name, info in base.tensors.items():
        delta = read_delta(base, source, name)
        if delta is not None:
            yield name, measure_delta(name, delta)
        meter.advance(info.num_parameters)


def measure_delta(name: str, delta: Tensor) -> Measured:
    """Try every candidate, and leaving it out, on a float32 delta that is not zero."""
    norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    if delta.dim() < 2:
        return Measured(norm, (Choice(VECTOR, stored_bytes(name, encode(delta, VECTOR)), 0.0),))
    matrix = delta.reshape(matrix_shape(tuple(delta.shape)))
    largest = float(matrix.abs().max())
    is_table = name.endswith(_TABLE_ENDINGS)
    probes = (Probes.of_table if is_table else Probes.of_layer)(matrix / largest)
    whole = probes.effect(matrix / largest)
    choices = [Choice(None, 0, 1.0)]
    for scheme in TABLE_CANDIDATES if is_table else CANDIDATES:
        encoded = encode(delta, scheme)
        error = (decode(encoded) - delta).reshape(matrix.shape) / largest
        lost = probes.effect(error) / whole
        choices.append(Choice(scheme, stored_bytes(name, encoded), lost))
    return Measured(norm, tuple(choices))


def stored_bytes(name: str, encoded: EncodedDelta) -> int:
    """Bytes of a delta in a shard, its fields in the header included, at most a few too many."""
    return sum(
        stored.values.nbytes + _field_bytes(part_key(name, part), stored.values)
        for part, stored in stored_parts(encoded).items()
    )


def _measure_adapter(
    base: Checkpoint, source: Source, meter: Meter
) -> Iterator[tuple[str, Measured]]:
    factors = Coding("", Scheme("lowrank"))
    for name, encoded in encoded_deltas(base, source, factors, meter):
        kept = Choice(factors.default, stored_bytes(name, encoded), 0.0)
        yield name, Measured(0.0, (kept,))


def _field_bytes(key: str, values: Tensor) -> int:
    """Characters of a tensor's field in the header."""
    field = {
        "dtype": DTYPE_NAMES[values.dtype],
        "shape": list(values.shape),
        "data_offsets": [_LARGEST_OFFSET, _LARGEST_OFFSET],
    }
    return len(json.dumps({key: field}, separators=(",", ":")))
