"""Building and changing banks, one tensor at a time."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from taskmix_composer.adapter import Adapter, open_finetuned
from taskmix_composer.bank import Bank, EncodedDelta
from taskmix_composer.bank.directory import new_directory, write_locked
from taskmix_composer.bank.manifest import (
    BaseRecord,
    EntryRecord,
    Manifest,
    Provenance,
    TensorRecord,
    canonical,
    sha256,
)
from taskmix_composer.bank.writer import publish, write_entry
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.errors import InvalidSchemeError, TaskExistsError
from taskmix_composer.identity import functional_config
from taskmix_composer.mix import check_name
from taskmix_composer.quant import SCHEMES, encode, lowrank
from taskmix_composer.taskvector import Source, check_finite, check_source, read_delta
from taskmix_composer.tensorfile import DTYPE_NAMES, tensor_digest

Progress = Callable[[int, int], None]
"""Called with the parameters done and their total."""


class _Meter:
    """Adds up work for a progress callback."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress = progress
        self._total = total
        self._done = 0

    def advance(self, num_parameters: int) -> None:
        self._done += num_parameters
        if self._progress is not None:
            self._progress(self._done, self._total)


def build_bank(
    base: Path,
    tasks: Mapping[str, Path],
    scheme: Scheme,
    out: Path,
    progress: Progress | None = None,
) -> Bank:
    """Write a bank of these fine-tuned models and adapters to `out`, which must not exist.

    Adapters are stored as their factors, whatever the scheme.
    """
    with new_directory(out) as directory:
        checkpoint = Checkpoint.open(base)
        sources = {
            check_name(task): _open_source(checkpoint, path, scheme) for task, path in tasks.items()
        }
        meter = _Meter(progress, _num_parameters(checkpoint) * (1 + len(sources)))
        manifest = Manifest(_base_record(checkpoint, meter))
        for task, source in sources.items():
            entry = _write_task(directory, checkpoint, task, source, scheme, meter)
            manifest = manifest.with_entry(task, entry)
        publish(directory, manifest)
    return Bank.open(out)


def add_task(
    bank: Path,
    base: Path,
    name: str,
    source: Path,
    scheme: Scheme | None = None,
    progress: Progress | None = None,
) -> Bank:
    """Add a task to a bank; without a scheme, under the one most of its entries use."""
    check_name(name)
    with write_locked(bank):
        opened = Bank.open(bank)
        if name in opened.entries:
            raise TaskExistsError(
                f"{bank} has a task {name!r} already; remove it first or choose another name"
            )
        checkpoint = Checkpoint.open(base)
        chosen = scheme or _usual_scheme(opened.entries)
        finetuned = _open_source(checkpoint, source, chosen)
        opened.check_base(checkpoint)
        meter = _Meter(progress, _num_parameters(checkpoint))
        entry = _write_task(bank, checkpoint, name, finetuned, chosen, meter)
        publish(bank, opened.manifest.with_entry(name, entry))
    return Bank.open(bank)


def remove_task(bank: Path, name: str) -> Bank:
    """Remove a task and its shard; banks that are open keep it."""
    with write_locked(bank):
        opened = Bank.open(bank)
        opened.entry(name)
        publish(bank, opened.manifest.without_entry(name))
    return Bank.open(bank)


def _open_source(base: Checkpoint, path: Path, scheme: Scheme) -> Source:
    source = open_finetuned(path)
    if scheme.name not in SCHEMES and not isinstance(source, Adapter):
        raise InvalidSchemeError(
            f"scheme {scheme} takes adapter directories and {path} is a full model; choose from "
            f"{', '.join(SCHEMES)}"
        )
    check_source(base, source)
    return source


def _base_record(base: Checkpoint, meter: _Meter) -> BaseRecord:
    tensors = {}
    for name, info in base.tensors.items():
        digest = tensor_digest(base.read(name))
        tensors[name] = TensorRecord(DTYPE_NAMES[info.dtype], info.shape, digest)
        meter.advance(info.num_parameters)
    return BaseRecord(functional_config(base.config), tensors, base.tie_groups)


def _write_task(
    directory: Path,
    base: Checkpoint,
    task: str,
    source: Source,
    scheme: Scheme,
    meter: _Meter,
) -> EntryRecord:
    stored = Scheme("lowrank") if isinstance(source, Adapter) else scheme
    deltas = _encoded_deltas(base, source, stored, meter)
    return write_entry(directory, task, str(stored), _provenance(source), deltas)


def _encoded_deltas(
    base: Checkpoint, source: Source, scheme: Scheme, meter: _Meter
) -> Iterator[tuple[str, EncodedDelta]]:
    """Encode every tensor that changed, holding one at a time."""
    for name, info in base.tensors.items():
        encoded = _encode(base, source, name, scheme)
        if encoded is not None:
            yield name, encoded
            del encoded
        meter.advance(info.num_parameters)


def _encode(base: Checkpoint, source: Source, name: str, scheme: Scheme) -> EncodedDelta | None:
    if not isinstance(source, Adapter):
        delta = read_delta(base, source, name)
        return None if delta is None else encode(delta, scheme)
    if name not in source.names:
        return None
    a, b = source.read(name)
    check_finite(source, name, (a, b))
    return lowrank.encode(a, b, source.scaling) if a.any() and b.any() else None


def _provenance(source: Source) -> Provenance:
    spans = {name: file.spans[name] for name, file in source.files.items()}
    dtypes = sorted({DTYPE_NAMES[span.dtype] for span in spans.values()})
    digests = {name: tensor_digest(file.read(name)) for name, file in source.files.items()}
    return Provenance(source.directory.resolve().name, sha256(canonical(digests)), "+".join(dtypes))


def _usual_scheme(entries: Mapping[str, EntryRecord]) -> Scheme:
    """The scheme of most entries that were full models; int4 where there are none."""
    schemes = sorted(entry.scheme for entry in entries.values() if entry.scheme != "lowrank")
    return Scheme.parse(Counter(schemes).most_common(1)[0][0]) if schemes else Scheme("int4")


def _num_parameters(base: Checkpoint) -> int:
    return sum(info.num_parameters for info in base.tensors.values())
