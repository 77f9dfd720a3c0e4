"""Reading bank.json, strictly: what is not exactly as written by this version is refused."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from taskmix_composer.bank.manifest import (
    FORMAT,
    VERSION,
    BaseRecord,
    DeltaRecord,
    EntryRecord,
    Manifest,
    PartRecord,
    Provenance,
    ShardRecord,
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
        manifest = Manifest(_base(fields["base"]), _mapping(fields["entries"], _entry))
        for name, entry in manifest.entries.items():
            _check_entry(name, entry, manifest.base)
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


def _check_entry(name: str, entry: EntryRecord, base: BaseRecord) -> None:
    check_name(name)
    for tensor, delta in entry.tensors.items():
        if tensor not in base.tensors or delta.shape != base.tensors[tensor].shape:
            raise BankFormatError(f"entry {name} does not fit the base at {tensor}; {_REBUILD}")


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
    shard, provenance = value["shard"], value["provenance"]
    return EntryRecord(
        scheme=_text(value["scheme"]),
        shard=ShardRecord(_count(shard["bytes"]), _text(shard["header_digest"])),
        tensors=_mapping(value["tensors"], _delta),
        provenance=Provenance(
            _text(provenance["source"]), _text(provenance["digest"]), _text(provenance["dtype"])
        ),
    )


def _delta(value: Any) -> DeltaRecord:
    return DeltaRecord(
        codec=_text(value["codec"]),
        shape=_shape(value["shape"]),
        params=_mapping(value["params"], _number),
        parts=_mapping(
            value["parts"], lambda part: PartRecord(_text(part["dtype"]), _shape(part["shape"]))
        ),
        digest=_text(value["digest"]),
    )


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


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(text)
