"""Tasks, shared vectors and planes as a worker holds them: coded, and off the bank's pages."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskmix_composer.bank import Bank, EncodedDelta
from taskmix_composer.bank.codecs import ARCHIVAL_CODECS
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.quant import decode_rows

CodedTensors = Mapping[str, EncodedDelta]


@dataclass(frozen=True, slots=True, eq=False)
class ResidentTask:
    """A task's coded deltas by tensor.

    shared: the digest of the vector that they are coded over, or empty; it is held apart.
    """

    digest: str
    shared: str
    tensors: CodedTensors


@dataclass(frozen=True, slots=True)
class CodedLoader:
    """Reads banks of one base, for a model that computes in `dtype`.

    Entropy coding ends here; codes stay packed. Plain numbers (dense deltas, low-rank factors) are
    rounded to bfloat16 where the model computes in it. An archived delta has no packed form that
    could be multiplied: it is held as the plain difference from the base. So are vectors (norms
    and biases), in float32.
    """

    base: Checkpoint
    dtype: torch.dtype

    def task(self, bank: Bank, name: str, shared: CodedTensors) -> ResidentTask:
        """Read a task; `shared` is the vector that it is coded over, where there is one."""
        entry = bank.entry(name)
        tensors = {
            tensor: self._held(bank.read(name, tensor, shared.get(tensor)), tensor)
            for tensor in entry.tensors
        }
        return ResidentTask(entry.digest, entry.shared, tensors)

    def shared(self, bank: Bank, digest: str) -> CodedTensors:
        """Read a shared vector."""
        tensors = bank.manifest.shared[digest].content.tensors
        read = {tensor: bank.read_shared(digest, tensor) for tensor in tensors}
        return {tensor: _copied(delta) for tensor, delta in read.items() if delta is not None}

    def plane(self, bank: Bank, name: str) -> CodedTensors:
        """Read a plane; what it masks out entirely is absent."""
        tensors = bank.plane(name).content.tensors
        read = {tensor: bank.read_plane(name, tensor) for tensor in tensors}
        return {tensor: _copied(plane) for tensor, plane in read.items() if plane is not None}

    def _held(self, delta: EncodedDelta, tensor: str) -> EncodedDelta:
        if len(delta.shape) == 1 or delta.codec in ARCHIVAL_CODECS:
            return self._difference(delta, tensor)
        if delta.codec in ("dense", "lowrank") and delta.shared is None:
            floats = {
                part: values.to(self._rounded(values.dtype), copy=True)
                for part, values in delta.parts.items()
            }
            return _copied(delta, floats)
        return _copied(delta)

    def _difference(self, delta: EncodedDelta, tensor: str) -> EncodedDelta:
        rows, values = decode_rows(delta, self.base.read(tensor))
        dtype = torch.float32 if len(delta.shape) == 1 else self._rounded(torch.float32)
        parts = {"values": values.to(dtype, copy=True)}
        return EncodedDelta("dense", delta.shape, {}, parts, None if rows is None else rows.clone())

    def _rounded(self, stored: torch.dtype) -> torch.dtype:
        return torch.bfloat16 if self.dtype is torch.bfloat16 else stored


def coded_bytes(tensors: CodedTensors) -> int:
    """Bytes of coded tensors, without those of a vector that they share."""
    return sum(delta.num_bytes for delta in tensors.values())


def _copied(delta: EncodedDelta, parts: Mapping[str, Tensor] | None = None) -> EncodedDelta:
    """The same delta in memory of its own, with `parts` in place of copies if given."""
    owned = parts or {part: values.clone() for part, values in delta.parts.items()}
    is_own = delta.shared is None  # else its rows are the shared delta's
    rows = delta.rows.clone() if is_own and delta.rows is not None else None
    return EncodedDelta(delta.codec, delta.shape, delta.params, owned, rows, delta.shared)
