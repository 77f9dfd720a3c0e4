"""From a fine-tune's weights to encoded deltas that stand by themselves."""

from collections.abc import Iterator

from taskmix_composer.adapter import ADAPTER_SCHEME, Adapter
from taskmix_composer.archive import Archive, Decoded
from taskmix_composer.bank import EncodedDelta
from taskmix_composer.bank.records import Derivation, Provenance, canonical, sha256
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Coding, Forms
from taskmix_composer.progress import Meter
from taskmix_composer.quant import archival, encode, lowrank
from taskmix_composer.taskvector import Source, check_finite, read_delta
from taskmix_composer.tensorfile import DTYPE_NAMES, tensor_bytes, tensor_digest


def is_adapter(source: Source) -> bool:
    """Whether a source is low-rank factors, which every scheme stores as they are."""
    return isinstance(source, Adapter) or (isinstance(source, Archive) and source.is_adapter)


def coding_of(source: Source, task: str, forms: Forms) -> Coding:
    """What a task is coded under when `forms` are asked for."""
    if is_adapter(source):
        return Coding(ADAPTER_SCHEME, Scheme("lowrank"))
    return forms.coding(task)


def encoded_deltas(
    base: Checkpoint, source: Source, coding: Coding, meter: Meter
) -> Iterator[tuple[str, EncodedDelta]]:
    """Encode every tensor that changed, holding one at a time."""
    for name, info in base.tensors.items():
        encoded = _encoded(base, source, name, coding)
        if encoded is not None:
            yield name, encoded
            del encoded
        meter.advance(info.num_parameters)


def provenance_of(source: Source) -> Provenance | Derivation:
    """A source's name and a digest of its weights."""
    if isinstance(source, Archive | Decoded):
        return source.provenance
    spans = {name: file.spans[name] for name, file in source.files.items()}
    dtypes = sorted({DTYPE_NAMES[span.dtype] for span in spans.values()})
    digests = {name: tensor_digest(file.read(name)) for name, file in source.files.items()}
    return Provenance(source.directory.resolve().name, sha256(canonical(digests)), "+".join(dtypes))


def _encoded(base: Checkpoint, source: Source, name: str, coding: Coding) -> EncodedDelta | None:
    if isinstance(source, Adapter):
        return _adapter(source, name)
    if isinstance(source, Archive) and source.is_adapter:
        held = source.bank.entry(source.task).tensors
        return source.bank.read(source.task, name) if name in held else None
    assert not isinstance(source, Decoded), "decoded tasks are merged, never coded again"
    scheme = coding.of(name)
    if scheme is None:
        return None
    if scheme.name == "exact":
        return _exact(base, source, name)
    delta = read_delta(base, source, name)
    return None if delta is None else encode(delta, scheme)


def _adapter(source: Adapter, name: str) -> EncodedDelta | None:
    if name not in source.names:
        return None
    a, b = source.read(name)
    check_finite(source, name, (a, b))
    return lowrank.encode(a, b, source.scaling) if a.any() and b.any() else None


def _exact(base: Checkpoint, source: Checkpoint | Archive, name: str) -> EncodedDelta | None:
    """A tensor's own bits, checked to be finite and, where it holds no floats, unchanged."""
    before = base.read(name)
    after = source.tuned(base, name) if isinstance(source, Archive) else source.read(name)
    is_same = before.dtype == after.dtype and tensor_bytes(before) == tensor_bytes(after)
    if is_same:
        return None
    if isinstance(source, Checkpoint):
        read_delta(base, source, name)
    return archival.encode(before, after)
