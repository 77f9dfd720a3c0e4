"""Merging tasks offline and publishing the result in their bank: as one entry, or as planes."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from taskmix_composer.archive import Archive, Decoded
from taskmix_composer.bank import Bank
from taskmix_composer.bank.directory import write_locked
from taskmix_composer.bank.manifest import Manifest
from taskmix_composer.bank.records import Content, Derivation, EntryRecord, PlaneRecord
from taskmix_composer.bank.writer import ContentWriter, publish, write_content
from taskmix_composer.build import open_source, usual_forms
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.encoding import provenance_of
from taskmix_composer.entries import with_gram
from taskmix_composer.errors import (
    BaseMismatchError,
    InvalidMethodError,
    InvalidSchemeError,
    TaskExistsError,
    UnarchivedError,
)
from taskmix_composer.forms import DEFAULT
from taskmix_composer.merge import MERGE_METHODS, Selection, Value, Vectors
from taskmix_composer.mix import Mix, Term, check_name
from taskmix_composer.progress import Meter, Progress
from taskmix_composer.quant import SCHEMES, encode, masked
from taskmix_composer.taskvector import Source, read_delta


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """A merge method with its parameters, the tasks it is for, and the name of what it makes.

    scheme: how a derived entry is coded; by default as most of the bank is.
    is_planes: publish masks over the tasks, not an entry.
    directories: where originals are, of tasks that the bank does not archive.
    is_from_bank: read tasks that are neither archived nor in `directories` as the bank codes them.
    """

    method: str
    tasks: tuple[str, ...]
    params: Mapping[str, Value]
    name: str
    scheme: Scheme | None = None
    is_planes: bool = False
    directories: Mapping[str, Path] = field(default_factory=dict)
    is_from_bank: bool = False

    def __post_init__(self) -> None:
        check_name(self.name)
        if len(set(self.tasks)) != len(self.tasks) or not self.tasks:
            raise InvalidMethodError("name the tasks to merge, each once")
        stray = sorted(self.directories.keys() - set(self.tasks))
        if stray:
            raise InvalidMethodError(f"{stray[0]!r} has a directory but is not among the tasks")
        if self.scheme is not None and self.scheme.name not in SCHEMES:
            raise InvalidSchemeError(
                f"a derived entry stands by itself and cannot be {self.scheme}; choose from "
                f"{', '.join(SCHEMES)}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class SourceVectors:
    """Task vectors read from their sources; implements `merge.Vectors`."""

    base: Checkpoint
    sources: Mapping[str, Source]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, base: Checkpoint, sources: Mapping[str, Source]) -> "SourceVectors":
        """Find the tensors that any task changes."""
        changed = {
            name: info.shape
            for name, info in sorted(base.tensors.items())
            if any(read_delta(base, source, name) is not None for source in sources.values())
        }
        return cls(base, sources, changed)

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(self.sources)

    @property
    def num_weights(self) -> int:
        return sum(
            info.num_parameters
            for info in self.base.tensors.values()
            if info.dtype.is_floating_point
        )

    def read(self, tensor: str) -> Tensor:
        stacked = torch.zeros((len(self.sources), *self.shapes[tensor]))
        for own, source in zip(stacked, self.sources.values(), strict=True):
            delta = read_delta(self.base, source, tensor)
            if delta is not None:
                own.copy_(delta)
        return stacked


def merge_tasks(
    bank: Path, base: Path, request: MergeRequest, progress: Progress | None = None
) -> tuple[Bank, Mix]:
    """Merge tasks into a new entry or new planes; return the bank and the mix that uses them."""
    with write_locked(bank):
        opened = Bank.open(bank)
        _check_free(opened, request)
        checkpoint = Checkpoint.open(base)
        opened.check_base(checkpoint)
        sources = {task: _source(opened, checkpoint, request, task) for task in request.tasks}
        vectors = SourceVectors.of(checkpoint, sources)
        derivation = _derivation(request, sources)
        meter = Meter(progress, checkpoint.num_parameters * (len(opened.entries) + 2))
        if request.is_planes:
            manifest, mix = _write_planes(opened, vectors, request, derivation)
        else:
            manifest, mix = _write_entry(opened, vectors, request, derivation)
            manifest = with_gram(bank, manifest, checkpoint, meter)
        publish(bank, manifest)
    return Bank.open(bank), mix


def _check_free(bank: Bank, request: MergeRequest) -> None:
    if request.is_planes:
        taken = [name for name in bank.planes if name.startswith(f"{request.name}.")]
    else:
        taken = [name for name in bank.entries if name == request.name]
    if taken:
        raise TaskExistsError(f"{bank.path} has {taken[0]!r} already; choose another name")


def _source(bank: Bank, base: Checkpoint, request: MergeRequest, task: str) -> Source:
    """Where a task's vector is read from: its directory, else its archive, else the bank's form."""
    if task in request.directories:
        source = open_source(base, request.directories[task])
        held = bank.entries.get(task)
        if held is not None and held.provenance.digest != provenance_of(source).digest:
            raise BaseMismatchError(
                f"{request.directories[task]} is another fine-tune than the bank's {task!r}; give "
                "the one it was built from"
            )
        return source
    try:
        return Archive.open(bank, task)
    except UnarchivedError as error:
        if request.is_from_bank:
            return Decoded(bank, task)
        raise UnarchivedError(
            f"{error} with --from {task}=DIR; or give --from-bank to merge what the bank decodes to"
        ) from None


def _derivation(request: MergeRequest, sources: Mapping[str, Source]) -> Derivation:
    return Derivation(
        request.method,
        {name: _plain(value) for name, value in request.params.items()},
        {task: provenance_of(source).digest for task, source in sources.items()},
        is_from_bank=any(isinstance(source, Decoded) for source in sources.values()),
    )


def _plain(value: Value) -> int | float | str:
    """A parameter as a record holds it: several numbers and truth values are written as text."""
    if isinstance(value, tuple):
        return ",".join(map(repr, value))
    return str(value).lower() if isinstance(value, bool) else value


def _write_entry(
    bank: Bank, vectors: Vectors, request: MergeRequest, derivation: Derivation
) -> tuple[Manifest, Mix]:
    usual = usual_forms(bank).scheme
    scheme = request.scheme or (usual if usual.name in SCHEMES else DEFAULT)
    merged = MERGE_METHODS[request.method].merge(vectors, request.params)
    coded = ((tensor, encode(delta, scheme)) for tensor, delta in merged if delta.any())
    entry = EntryRecord(str(scheme), write_content(bank.path, request.name, coded), derivation)
    return bank.manifest.with_entries({request.name: entry}), Mix.of({request.name: 1.0})


def _write_planes(
    bank: Bank, vectors: Vectors, request: MergeRequest, derivation: Derivation
) -> tuple[Manifest, Mix]:
    """Write a plane per task, or one for all where they are equal."""
    for task in request.tasks:
        bank.entry(task)
    names = {task: check_name(f"{request.name}.{task}") for task in request.tasks}
    selections = MERGE_METHODS[request.method].planes(vectors, request.params)
    drafts, coefficients = _drafts(bank.path, names, selections)
    idle = [task for task in request.tasks if not any(coefficients[task].values())]
    if idle:
        raise InvalidMethodError(
            f"{idle[0]!r} adds nothing under these parameters; leave it out of the tasks"
        )
    num_weights = vectors.num_weights
    planes = {
        name: PlaneRecord(content, derivation, num_ones / num_weights)
        for name, (content, num_ones) in drafts.items()
    }
    terms = (_masked(task, names[task], coefficients[task]) for task in request.tasks)
    manifest = replace(bank.manifest, planes={**bank.manifest.planes, **planes})
    return manifest, Mix(tuple(terms))


def _drafts(
    directory: Path, names: Mapping[str, str], selections: Iterable[Selection]
) -> tuple[dict[str, tuple[Content, int]], dict[str, dict[str, float]]]:
    """Write planes' shards: contents and ones by name, and coefficients by task and tensor."""
    num_ones = dict.fromkeys(names.values(), 0)
    coefficients: dict[str, dict[str, float]] = {task: {} for task in names}
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(ContentWriter(directory, name)) for name in names.values()
        }
        for selection in selections:
            for task, coefficient in zip(names, selection.coefficients, strict=True):
                coefficients[task][selection.tensor] = coefficient
            for name, mask in zip(names.values(), selection.masks, strict=True):
                if mask.any():
                    writers[name].add(selection.tensor, masked.encode_plane(mask))
                    num_ones[name] += int(mask.sum())
        drafts = {name: (writer.finish(), num_ones[name]) for name, writer in writers.items()}
    return drafts, coefficients


def _masked(task: str, plane: str, coefficients: Mapping[str, float]) -> Term:
    """A task under its plane; a coefficient for every tensor, most often one for all of them."""
    usual = next(iter(coefficients.values()), 0.0)
    others = ((tensor, value) for tensor, value in coefficients.items() if value != usual)
    return Term(task, usual, (plane,), by_tensor=tuple(others))
