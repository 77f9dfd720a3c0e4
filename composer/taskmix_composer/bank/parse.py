"""Reading bank.json, strictly: what is not exactly as written by this version is refused."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from taskmix_composer.bank.manifest import FORMAT, VERSION, Manifest
from taskmix_composer.bank.records import (
    BaseRecord,
    Content,
    DeltaRecord,
    Derivation,
    EntryRecord,
    GramRecord,
    PartRecord,
    PlaneRecord,
    Provenance,
    ShardRecord,
    SharedRecord,
    TensorRecord,
)
from taskmix_composer.errors import BankFormatError, InvalidMixError
from taskmix_composer.mix import check_name
from taskmix_composer.tensorfile import DTYPES

Record = TypeVar("Record")
_REBUILD = "restore the bank from a copy or build it again"


def parse_manifest(content: bytes, path: Path) -> Manifest:
    """Read bank.json's content; `path` is where it came from, for errors."""
    try:
        fields = json.loads(content, parse_constant=_refuse_constant)
        _check_version(fields)
        manifest = Manifest(
            _base(fields["base"]),
            _mapping(fields["entries"], _entry),
            _mapping(fields["shared"], _shared),
            _mapping(fields["planes"], _plane),
            None if fields["gram"] is None else _gram(fields["gram"]),
        )
        _check(manifest)
        is_canonical = manifest.to_bytes() == content
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, InvalidMixError):
        raise BankFormatError(f"the manifest is damaged; {_REBUILD}", path=path) from None
    except BankFormatError as error:
        raise BankFormatError(str(error), path=path) from None
    if not is_canonical:
        raise BankFormatError(f"the manifest does not match its own digest; {_REBUILD}", path=path)
    return manifest


def _check_version(fields: Any) -> None:
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise BankFormatError("this is not a taskmix bank; give a directory `bank build` made")
    version = fields.get("version")
    if isinstance(version, int) and version > VERSION:
        raise BankFormatError(
            f"the bank has format version {version} and was written by a newer taskmix; "
            f"upgrade taskmix, which reads up to version {VERSION} here"
        )
    if version != VERSION:
        raise BankFormatError(f"format version {version!r} is unknown; {_REBUILD}")


def _check(manifest: Manifest) -> None:
    """Check that the records fit one another."""
    for name in (*manifest.entries, *manifest.planes):
        check_name(name)
    for file, content in manifest.contents().items():
        _check_content(file, content, manifest.base)
    for name, entry in manifest.entries.items():
        if entry.shared and entry.shared not in manifest.shared:
            raise BankFormatError(f"entry {name} lacks its shared vector; {_REBUILD}")
    if any(shared.content.digest != digest for digest, shared in manifest.shared.items()):
        raise BankFormatError(f"a shared vector has another content than its name; {_REBUILD}")
    if manifest.gram is not None and manifest.gram.tasks != tuple(sorted(manifest.entries)):
        raise BankFormatError(f"the Gram table is of other tasks; {_REBUILD}")


def _check_content(file: str, content: Content, base: BaseRecord) -> None:
    for tensor, delta in content.tensors.items():
        if tensor not in base.tensors or delta.shape != base.tensors[tensor].shape:
            raise BankFormatError(f"{file} does not fit the base at {tensor}; {_REBUILD}")


def _base(value: Any) -> BaseRecord:
    return BaseRecord(
        config=_mapping(value["config"], lambda setting: setting),
        tensors=_mapping(value["tensors"], _tensor),
        tie_groups=tuple(tuple(_text(name) for name in group) for group in value["tie_groups"]),
    )


def _tensor(value: Any) -> TensorRecord:
    dtype = _text(value["dtype"])
    if dtype not in DTYPES:
        raise TypeError(dtype)
    return TensorRecord(dtype, _shape(value["shape"]), _text(value["digest"]))


def _entry(value: Any) -> EntryRecord:
    archive = value["archive"]
    return EntryRecord(
        scheme=_text(value["scheme"]),
        content=_content(value),
        provenance=_provenance(value["provenance"]),
        shared=_text(value["shared"]),
        archive=None if archive is None else _content(archive),
    )


def _shared(value: Any) -> SharedRecord:
    return SharedRecord(_text(value["scheme"]), _content(value), _derivation(value["derivation"]))


def _plane(value: Any) -> PlaneRecord:
    return PlaneRecord(
        _content(value), _derivation(value["derivation"]), float(_number(value["density"]))
    )


def _gram(value: Any) -> GramRecord:
    tasks = tuple(_text(task) for task in value["tasks"])
    return GramRecord(_shard(value["shard"]), tasks, _text(value["digest"]))


def _content(value: Any) -> Content:
    return Content(_shard(value["shard"]), _mapping(value["tensors"], _delta))


def _shard(value: Any) -> ShardRecord:
    return ShardRecord(_count(value["bytes"]), _text(value["header_digest"]))


def _provenance(value: Any) -> Provenance | Derivation:
    if "method" in value:
        return _derivation(value)
    return Provenance(_text(value["source"]), _text(value["digest"]), _text(value["dtype"]))


def _derivation(value: Any) -> Derivation:
    if not isinstance(value["from_bank"], bool):
        raise TypeError(value)
    return Derivation(
        _text(value["method"]),
        _mapping(value["params"], _setting),
        _mapping(value["bound"], _text),
        value["from_bank"],
    )


def _delta(value: Any) -> DeltaRecord:
    return DeltaRecord(
        codec=_text(value["codec"]),
        shape=_shape(value["shape"]),
        params=_mapping(value["params"], _number),
        parts=_mapping(value["parts"], _part),
        digest=_text(value["digest"]),
    )


def _part(value: Any) -> PartRecord:
    coded = _count(value["coded"]) if "coded" in value else None
    dtype = _text(value["dtype"])
    if dtype not in DTYPES:
        raise TypeError(dtype)
    return PartRecord(dtype, _shape(value["shape"]), coded)


def _mapping(value: Any, read: Callable[[Any], Record]) -> Mapping[str, Record]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return {key: read(item) for key, item in value.items()}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(value)
    return value


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise TypeError(value)
    return tuple(_count(size) for size in value)


def _number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(value)
    return value


def _setting(value: Any) -> int | float | str:
    return value if isinstance(value, str) else _number(value)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)
