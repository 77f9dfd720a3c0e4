"""Tasks, shared vectors and planes as a worker holds them: coded, and off the bank's pages."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from taskmix_composer.bank import Bank, EncodedDelta
from taskmix_composer.bank.codecs import ARCHIVAL_CODECS
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.kernels.native.memory import Arena
from taskmix_composer.kernels.native.packing import PackedDelta, pack
from taskmix_composer.quant import decode_rows
from taskmix_server.engine.vllm.background import until_exit

CodedTensors = Mapping[str, EncodedDelta]
PackedTensors = Mapping[str, tuple[PackedDelta, ...]]
"""What the deltas of a tensor add up to."""
Read = Callable[[str], EncodedDelta | None]
"""Gives a tensor's delta, or None where there is none."""


@dataclass(frozen=True, slots=True, eq=False)
class ResidentVector:
    """Deltas by tensor: `packed` as the kernel reads them, and `coded`, for which it has no form.

    No tensor is in both.
    """

    coded: CodedTensors
    packed: PackedTensors

    @property
    def num_bytes(self) -> int:
        """Its own bytes; a vector that it is coded over counts for itself."""
        packed = (part for parts in self.packed.values() for part in parts)
        return coded_bytes(self.coded) + sum(part.num_bytes for part in packed)


@dataclass(frozen=True, slots=True, eq=False)
class ResidentTask:
    """A task's deltas.

    shared: the digest of the vector that they are coded over, or empty; it is held apart.
    """

    digest: str
    shared: str
    vector: ResidentVector


NO_VECTOR = ResidentVector({}, {})


@dataclass(frozen=True, slots=True)
class CodedLoader:
    """Reads banks of one base, for a model that computes in `dtype`.

    Entropy coding ends here; codes stay packed, in the kernel's order where `is_packing`. Plain
    numbers (dense deltas, low-rank factors) are rounded to bfloat16 where the model computes in
    it. An archived delta has no packed form that could be multiplied: it is held as the plain
    difference from the base. So are vectors (norms and biases), in float32.
    """

    base: Checkpoint
    dtype: torch.dtype
    is_packing: bool

    def task(self, bank: Bank, name: str, shared: ResidentVector) -> ResidentTask:
        """Read a task; `shared` is the vector that it is coded over, where there is one."""
        entry = bank.entry(name)

        def read(tensor: str) -> EncodedDelta:
            return bank.read(name, tensor, self._coded_over(bank, entry.shared, tensor, shared))

        vector = self._vector(entry.tensors, read, shared.packed)
        return ResidentTask(entry.digest, entry.shared, vector)

    def shared(self, bank: Bank, digest: str) -> ResidentVector:
        """Read a shared vector."""
        tensors = bank.manifest.shared[digest].content.tensors
        return self._vector(tensors, partial(bank.read_shared, digest), {})

    def plane(self, bank: Bank, name: str) -> CodedTensors:
        """Read a plane; what it masks out entirely is absent."""
        tensors = bank.plane(name).content.tensors
        read = {tensor: bank.read_plane(name, tensor) for tensor in tensors}
        return {tensor: _copied(plane) for tensor, plane in read.items() if plane is not None}

    def _vector(self, tensors: Iterable[str], read: Read, shared: PackedTensors) -> ResidentVector:
        """Read and hold deltas; `shared` has what those that are coded over others add to."""
        coded: dict[str, EncodedDelta] = {}
        packed: dict[str, tuple[PackedDelta, ...]] = {}
        arena = Arena()
        for tensor in until_exit(tensors):
            delta = read(tensor)
            if delta is None or 0 in delta.coded_shape:
                continue
            parts = self._packed(delta, shared.get(tensor, ()), arena)
            if parts is None:
                coded[tensor] = self._held(delta, tensor)
            else:
                packed[tensor] = parts
        return ResidentVector(coded, packed)

    def _coded_over(
        self, bank: Bank, digest: str, tensor: str, shared: ResidentVector
    ) -> EncodedDelta | None:
        """What a delta of the task is coded over: read again where the worker holds it packed."""
        held = shared.coded.get(tensor)
        return held or (bank.read_shared(digest, tensor) if tensor in shared.packed else None)

    def _packed(
        self, delta: EncodedDelta, shared: tuple[PackedDelta, ...], arena: Arena
    ) -> tuple[PackedDelta, ...] | None:
        return pack(delta, shared, arena) if self.is_packing and len(delta.shape) > 1 else None

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
