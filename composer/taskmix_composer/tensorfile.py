"""Safetensors files: read lazily through a memory map, written as a stream of tensors."""

import ctypes
import hashlib
import json
import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import torch
from torch import Tensor

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
MAX_HEADER_BYTES = 100_000_000
_LENGTH_BYTES = 8


class TensorFileError(ValueError):
    """A file that is not valid safetensors.

    Whoever opens the file turns this into an error of its own that names the file.
    """


@dataclass(frozen=True, slots=True)
class TensorSpan:
    """Where a tensor lies: bytes [start, end) of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


class TensorFile:
    """An open safetensors file; its tensors are views of the map until they are used."""

    def __init__(self, path: Path) -> None:
        num_bytes = path.stat().st_size
        if num_bytes < _LENGTH_BYTES:
            raise TensorFileError("the file is too short to be safetensors")
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if header_bytes > min(MAX_HEADER_BYTES, num_bytes - _LENGTH_BYTES):
                raise TensorFileError("the header is longer than the file or than 100 MB")
            header = file.read(header_bytes)
        self.path = path
        self.num_bytes = num_bytes
        self.header_digest = hashlib.sha256(header).hexdigest()
        self.spans = _parse_header(header, _LENGTH_BYTES + header_bytes, num_bytes)
        self._bytes = torch.from_file(str(path), shared=False, size=num_bytes, dtype=torch.uint8)

    def read(self, name: str) -> Tensor:
        """The named tensor, in its stored dtype; it keeps the map alive."""
        span = self.spans[name]
        raw = self._bytes[span.start : span.end]
        if span.start % span.dtype.itemsize:
            raw = raw.clone()
        return raw.view(span.dtype).view(span.shape)

    def let_go(self) -> None:
        """Take the pages that were read out of this process; what is read again comes anew."""
        address, length = ctypes.c_void_p(self._bytes.data_ptr()), ctypes.c_size_t(self.num_bytes)
        ctypes.CDLL(None).madvise(address, length, mmap.MADV_DONTNEED)


class TensorFileWriter:
    """Writes tensors one by one to a side file and, when finished, the safetensors file.

    Used as a context manager, which removes the side file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._data_path = path.with_name(path.name + ".data")
        self._spans: dict[str, TensorSpan] = {}
        self._data: IO[bytes] = self._data_path.open("w+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._data.close()
        self._data_path.unlink()

    def add(self, name: str, tensor: Tensor) -> None:
        """Append a tensor of any shape."""
        start = self._data.tell()
        self._data.write(tensor_bytes(tensor))
        self._spans[name] = TensorSpan(tensor.dtype, tuple(tensor.shape), start, self._data.tell())

    def finish(self) -> str:
        """Write and sync the file; return its header's digest.

        Wider dtypes come first, so that every tensor is aligned to its own size.
        """
        ordered = sorted(self._spans.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
        header = _make_header(ordered)
        with self._path.open("wb") as file:
            file.write(len(header).to_bytes(_LENGTH_BYTES, "little"))
            file.write(header)
            for _, span in ordered:
                self._data.seek(span.start)
                _copy(self._data, file, span.end - span.start)
            file.flush()
            os.fsync(file.fileno())
        return hashlib.sha256(header).hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in row-major order, without a copy where it is contiguous."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 (hex) of a tensor's bytes."""
    return hashlib.sha256(tensor_bytes(tensor)).hexdigest()


def _make_header(ordered: list[tuple[str, TensorSpan]]) -> bytes:
    fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, span in ordered:
        end = offset + span.end - span.start
        fields[name] = {
            "dtype": DTYPE_NAMES[span.dtype],
            "shape": list(span.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    header = json.dumps(fields, separators=(",", ":")).encode()
    return header + b" " * (-len(header) % 8)


def _copy(source: IO[bytes], target: IO[bytes], num_bytes: int) -> None:
    while num_bytes:
        piece = source.read(min(num_bytes, 1 << 20))
        target.write(piece)
        num_bytes -= len(piece)


def _parse_header(header: bytes, data_start: int, num_bytes: int) -> dict[str, TensorSpan]:
    """Check and locate every tensor; the spans must tile the data exactly."""
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError):
        raise TensorFileError("the header is not JSON") from None
    if not isinstance(fields, dict):
        raise TensorFileError("the header is not a JSON object")
    fields.pop("__metadata__", None)
    spans = {name: _parse_span(name, field, data_start) for name, field in fields.items()}
    end = data_start
    for span in sorted(spans.values(), key=lambda span: (span.start, span.end)):
        if span.start != end:
            raise TensorFileError("the tensors do not tile the file")
        end = span.end
    if end != num_bytes:
        raise TensorFileError(f"the file has {num_bytes} bytes, its header describes {end}")
    return spans


def _parse_span(name: str, field: object, data_start: int) -> TensorSpan:
    match field:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
            pass
        case _:
            raise TensorFileError(f"the header's field for {name} is malformed")
    if dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise TensorFileError(f"{name} has dtype {dtype}, which is not one of {known}")
    if not all(isinstance(size, int) and size >= 0 for size in shape) or start < 0:
        raise TensorFileError(f"the header's field for {name} is malformed")
    num_bytes = DTYPES[dtype].itemsize * math.prod(shape)
    if end - start != num_bytes:
        raise TensorFileError(f"{name} spans {end - start} bytes, its shape needs {num_bytes}")
    return TensorSpan(DTYPES[dtype], tuple(shape), data_start + start, data_start + end)
