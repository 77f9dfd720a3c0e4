"""Building and changing banks, one tensor at a time."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from taskmix_composer.adapter import ADAPTER_SCHEME, open_finetuned
from taskmix_composer.archive import Archive
from taskmix_composer.bank import Bank
from taskmix_composer.bank.directory import new_directory, write_locked
from taskmix_composer.bank.manifest import Manifest
from taskmix_composer.bank.records import BaseRecord, Provenance, TensorRecord
from taskmix_composer.bank.writer import publish, write_gram
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.encoding import is_adapter
from taskmix_composer.entries import (
    set_sources,
    with_gram,
    with_thresholds,
    write_over_frozen,
    write_tasks,
)
from taskmix_composer.errors import InvalidSchemeError, TaskExistsError
from taskmix_composer.forms import Forms
from taskmix_composer.gram import without_task
from taskmix_composer.identity import functional_config
from taskmix_composer.mix import check_name
from taskmix_composer.plan import PLANNED
from taskmix_composer.progress import Meter, Progress
from taskmix_composer.taskvector import Source, check_source
from taskmix_composer.tensorfile import DTYPE_NAMES, tensor_digest


def build_bank(
    base: Path,
    tasks: Mapping[str, Path],
    forms: Forms,
    out: Path,
    progress: Progress | None = None,
) -> Bank:
    """Write a bank of these fine-tuned models and adapters to `out`, which must not exist.

    Adapters are stored as their factors, whatever the scheme.
    """
    with new_directory(out) as directory:
        checkpoint = Checkpoint.open(base)
        sources = {check_name(task): open_source(checkpoint, path) for task, path in tasks.items()}
        _check_thresholds(forms, sources)
        meter = Meter(progress, checkpoint.num_parameters * (1 + 2 * len(sources)))
        manifest = Manifest(_base_record(checkpoint, meter))
        manifest = write_tasks(directory, manifest, checkpoint, sources, forms, meter)
        publish(directory, with_gram(directory, manifest, checkpoint, meter))
    return Bank.open(out)


def add_task(
    bank: Path,
    base: Path,
    name: str,
    source: Path,
    forms: Forms | None = None,
    progress: Progress | None = None,
) -> Bank:
    """Add a task to a bank; without `forms`, in those that most of its entries have.

    Under a set-bound scheme that is not frozen, the shared vector and every task over it are
    coded anew, from the bank's exact entries.
    """
    check_name(name)
    with write_locked(bank):
        opened = Bank.open(bank)
        if name in opened.entries:
            raise TaskExistsError(
                f"{bank} has a task {name!r} already; remove it first or choose another name"
            )
        checkpoint = Checkpoint.open(base)
        opened.check_base(checkpoint)
        chosen = with_thresholds(opened, forms or usual_forms(opened))
        newcomer = open_source(checkpoint, source)
        rewritten = {} if is_adapter(newcomer) else set_sources(opened, chosen)
        sources: dict[str, Source] = {name: newcomer, **rewritten}
        num_coded, num_measured = len(sources), len(opened.entries) + 1
        meter = Meter(progress, checkpoint.num_parameters * (num_coded + num_measured))
        if chosen.is_frozen and not is_adapter(newcomer):
            manifest = write_over_frozen(opened, checkpoint, sources, chosen, meter)
        else:
            manifest = write_tasks(bank, opened.manifest, checkpoint, sources, chosen, meter)
        publish(bank, with_gram(bank, manifest.pruned(), checkpoint, meter))
    return Bank.open(bank)


def remove_task(bank: Path, name: str) -> Bank:
    """Remove a task, with what only it uses, or a plane; banks that are open keep it.

    A shared vector stays as it was as long as another task is coded over it.
    """
    with write_locked(bank):
        opened = Bank.open(bank)
        if name in opened.planes and name not in opened.entries:
            planes = {plane: held for plane, held in opened.planes.items() if plane != name}
            publish(bank, replace(opened.manifest, planes=planes))
        else:
            opened.entry(name)
            publish(bank, _without(bank, opened, name))
    return Bank.open(bank)


def _without(bank: Path, opened: Bank, name: str) -> Manifest:
    """The manifest without a task, and its table of inner products without the task's row."""
    manifest, gram = opened.manifest.without_entry(name), opened.read_gram()
    if gram is None or manifest.gram is None:
        return manifest
    kept = without_task(gram, manifest.gram.tasks, name)
    remaining = tuple(sorted(manifest.entries))
    return replace(manifest, gram=write_gram(bank, remaining, kept) if remaining else None)


def recode_bank(
    bank: Path,
    base: Path,
    forms: Forms,
    tasks: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> Bank:
    """Give tasks (all that were fine-tunes, if none is named) another form, from exact entries.

    Exact entries stay beside what is made from them.
    """
    with write_locked(bank):
        opened = Bank.open(bank)
        checkpoint = Checkpoint.open(base)
        opened.check_base(checkpoint)
        named = tasks or _recodable(opened)
        sources = {task: Archive.open(opened, task) for task in named}
        _check_thresholds(forms, sources)
        meter = Meter(progress, checkpoint.num_parameters * (len(named) + len(opened.entries)))
        manifest = write_tasks(bank, opened.manifest, checkpoint, sources, forms, meter)
        publish(bank, with_gram(bank, manifest.pruned(), checkpoint, meter))
    return Bank.open(bank)


def open_source(base: Checkpoint, path: Path) -> Source:
    """Open a fine-tune's or adapter's directory and check that it is one of `base`."""
    source = open_finetuned(path)
    check_source(base, source)
    return source


def usual_forms(bank: Bank) -> Forms:
    """The forms of most entries that were fine-tuned models; int4 where there are none."""
    forms = Counter(
        (entry.scheme, entry.archive is not None)
        for _, entry in sorted(bank.entries.items())
        if entry.scheme not in (ADAPTER_SCHEME, PLANNED)
        and isinstance(entry.provenance, Provenance)
    )
    if not forms:
        return Forms()
    (scheme, is_archived), _ = forms.most_common(1)[0]
    return Forms(Scheme.parse(scheme), is_archived=is_archived)


def _check_thresholds(forms: Forms, sources: Mapping[str, Source]) -> None:
    stray = sorted(forms.thresholds.keys() - sources.keys())
    if stray:
        raise InvalidSchemeError(f"{stray[0]!r} has a lambda but is not among the tasks")


def _recodable(bank: Bank) -> tuple[str, ...]:
    """The tasks that `recode` means when none is named: all that were fine-tuned models."""
    return tuple(
        task
        for task, entry in bank.entries.items()
        if entry.scheme != ADAPTER_SCHEME and isinstance(entry.provenance, Provenance)
    )


def _base_record(base: Checkpoint, meter: Meter) -> BaseRecord:
    tensors = {}
    for name, info in base.tensors.items():
        digest = tensor_digest(base.read(name))
        tensors[name] = TensorRecord(DTYPE_NAMES[info.dtype], info.shape, digest)
        meter.advance(info.num_parameters)
    return BaseRecord(functional_config(base.config), tensors, base.tie_groups)
