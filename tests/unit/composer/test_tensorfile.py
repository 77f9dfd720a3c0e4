import json
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from taskmix_composer.tensorfile import (
    DTYPES,
    TensorFile,
    TensorFileError,
    TensorFileWriter,
    tensor_digest,
)


def write(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def field(dtype: str = "U8", shape: object = (2,), start: object = 0, end: object = 2) -> object:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def test_written_files_are_valid_safetensors(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.uint8),
        "wide": torch.randn(2, 3),
        "half": torch.randn(5).half(),
        "scalar": torch.tensor(2.5),
        "strided": torch.randn(4, 3).t(),
        "empty": torch.zeros(0, 4),
    }
    path = tmp_path / "x.safetensors"
    with TensorFileWriter(path) as writer:
        for name, tensor in tensors.items():
            writer.add(name, tensor)
        digest = writer.finish()
    file = TensorFile(path)
    theirs = load_file(path)
    assert file.header_digest == digest
    assert file.num_bytes == path.stat().st_size
    assert [file.path.name for file in [file]] == [entry.name for entry in tmp_path.iterdir()]
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor)
        assert torch.equal(file.read(name), tensor)
        assert file.spans[name].start % tensor.dtype.itemsize == 0


def test_every_dtype_is_read_as_safetensors_writes_it(tmp_path: Path) -> None:
    tensors = {name: torch.ones(3).to(dtype) for name, dtype in DTYPES.items()}
    save_file(tensors, tmp_path / "x.safetensors")
    file = TensorFile(tmp_path / "x.safetensors")
    for name, tensor in tensors.items():
        assert file.read(name).dtype == tensor.dtype
        assert tensor_digest(file.read(name)) == tensor_digest(tensor)


def test_a_misaligned_tensor_is_read(tmp_path: Path) -> None:
    values = torch.tensor([1.5, -2.0])
    header = {"a": field(shape=[1], end=1), "b": field("F32", [2], 1, 9)}
    path = write(tmp_path / "x", header, b"\1" + values.numpy().tobytes())
    assert torch.equal(TensorFile(path).read("b"), values)


def test_what_was_read_leaves_memory_and_can_be_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    values = torch.arange(1 << 23, dtype=torch.int32)
    with TensorFileWriter(path) as writer:
        writer.add("a", values)
        writer.finish()

    def mapped_bytes() -> int:
        return int(psutil.Process().memory_info().shared)

    file = TensorFile(path)
    before = mapped_bytes()
    view = file.read("a")
    assert torch.equal(view, values)
    assert mapped_bytes() - before > values.nbytes / 2
    file.let_go()
    assert mapped_bytes() - before < values.nbytes / 10
    assert torch.equal(view, values)


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(AttributeError), TensorFileWriter(path) as writer:
        writer.add("a", "not a tensor")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"{", b"", "not JSON"),
        (b"[" * 100_000, b"", "not JSON"),
        (b"\xff\xfe", b"", "not JSON"),
        ([], b"", "not a JSON object"),
        ({"a": 3}, b"", "malformed"),
        ({"a": {"dtype": "U8", "shape": [2]}}, b"12", "malformed"),
        ({"a": field(shape=[-2])}, b"12", "malformed"),
        ({"a": field(shape=["2"])}, b"12", "malformed"),
        ({"a": field(start=-1, end=1)}, b"12", "malformed"),
        ({"a": field("F5")}, b"12", "dtype F5"),
        ({"a": field("F32")}, b"12", "needs 8"),
        ({"a": field(shape=[1 << 62, 1 << 62])}, b"12", "needs"),
        ({"a": field()}, b"123", "3 bytes|describes"),
        ({"a": field()}, b"1", "describes"),
        ({"a": field(start=1, end=3)}, b"123", "tile"),
        ({"a": field(), "b": field()}, b"12", "tile"),
    ],
)
def test_malformed_files_are_refused(
    tmp_path: Path, header: object, data: bytes, message: str
) -> None:
    path = write(tmp_path / "x", header, data)
    with pytest.raises(TensorFileError, match=message):
        TensorFile(path)


def test_lengths_beyond_the_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    for content in (b"", b"1234567", (1 << 60).to_bytes(8, "little") + b"{}"):
        path.write_bytes(content)
        with pytest.raises(TensorFileError):
            TensorFile(path)
