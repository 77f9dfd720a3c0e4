"""Writing tasks into a bank's directory: each by itself or over a shared vector, and archives."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from taskmix_composer.archive import Archive
from taskmix_composer.bank import Bank
from taskmix_composer.bank.manifest import Manifest
from taskmix_composer.bank.opening import open_shards
from taskmix_composer.bank.records import Content, Derivation, EntryRecord, SharedRecord
from taskmix_composer.bank.writer import write_content, write_gram
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.encoding import coding_of, encoded_deltas, is_adapter, provenance_of
from taskmix_composer.errors import InvalidSchemeError, UnarchivedError
from taskmix_composer.forms import EXACT, Coding, Forms, threshold_key
from taskmix_composer.gram import gram_table
from taskmix_composer.progress import Meter
from taskmix_composer.setbound import SetWriter, shared_scheme
from taskmix_composer.taskvector import Source

Sources = Mapping[str, Source]


def write_tasks(
    directory: Path,
    manifest: Manifest,
    base: Checkpoint,
    sources: Sources,
    forms: Forms,
    meter: Meter,
) -> Manifest:
    """Write tasks' shards; return the manifest with their entries in it."""
    together = {
        task: source
        for task, source in sources.items()
        if forms.is_set_bound and not is_adapter(source)
    }
    apart = {task: source for task, source in sources.items() if task not in together}
    entries = {
        task: _write_apart(directory, base, task, source, forms, meter)
        for task, source in apart.items()
    }
    if together:
        shared, coded = _write_together(directory, base, together, forms, meter)
        manifest = replace(manifest, shared={**manifest.shared, shared.content.digest: shared})
        entries |= coded
    return manifest.with_entries(
        {
            task: replace(entry, archive=_archive(directory, base, task, sources[task], forms))
            for task, entry in entries.items()
        }
    )


def write_over_frozen(
    bank: Bank, base: Checkpoint, sources: Sources, forms: Forms, meter: Meter
) -> Manifest:
    """Write tasks over the shared vector that the bank's tasks of this scheme use."""
    members = _members(bank, forms)
    if not members:
        raise InvalidSchemeError(
            f"{bank.path} has no shared vector under {forms.scheme} to freeze; name the scheme of "
            "its set with --scheme, or leave --freeze-shared out"
        )
    digest, _ = Counter(bank.entry(task).shared for task in members).most_common(1)[0]
    contents = SetWriter(base, sources, forms).write_frozen(bank.path, bank, digest, meter)
    entries = {
        task: EntryRecord(
            str(forms.scheme),
            contents[task],
            provenance_of(source),
            digest,
            _archive(bank.path, base, task, source, forms),
        )
        for task, source in sources.items()
    }
    return bank.manifest.with_entries(entries)


def set_members(bank: Bank, forms: Forms) -> list[str]:
    """The tasks that must be coded anew when another joins them: those that share its vector."""
    if not forms.is_set_bound or forms.is_frozen:
        return []
    return _members(bank, forms)


def set_sources(bank: Bank, forms: Forms) -> dict[str, Source]:
    """Where the tasks of `set_members` are read from."""
    members = set_members(bank, forms)
    try:
        return {task: Archive.open(bank, task) for task in members}
    except UnarchivedError as error:
        raise UnarchivedError(
            f"adding a task under {forms.scheme} rewrites the vector that {', '.join(members)} "
            f"share, because it is made of all of them, and so each of those entries; {error}; or "
            "give --freeze-shared to code the newcomer over the vector as it stands"
        ) from None


def with_thresholds(bank: Bank, forms: Forms) -> Forms:
    """`forms` with the thresholds that the tasks of `set_members` were coded with."""
    kept = {}
    for task in set_members(bank, forms):
        params = bank.manifest.shared[bank.entry(task).shared].derivation.params
        if threshold_key(task) in params:
            kept[task] = float(params[threshold_key(task)])
    return replace(forms, thresholds={**kept, **forms.thresholds})


def with_gram(directory: Path, manifest: Manifest, base: Checkpoint, meter: Meter) -> Manifest:
    """The manifest with the inner products of its decoded tasks, which are written too."""
    if not manifest.entries:
        return replace(manifest, gram=None)
    unmeasured = replace(manifest, gram=None)
    bank = Bank(directory, unmeasured, open_shards(directory, unmeasured))
    gram = gram_table(bank, base, meter)
    return replace(manifest, gram=write_gram(directory, tuple(sorted(bank.entries)), gram))


def _members(bank: Bank, forms: Forms) -> list[str]:
    """The bank's tasks that are coded over a shared vector under this scheme."""
    scheme = str(forms.scheme)
    return [task for task, entry in bank.entries.items() if entry.shared and entry.scheme == scheme]


def _write_apart(
    directory: Path, base: Checkpoint, task: str, source: Source, forms: Forms, meter: Meter
) -> EntryRecord:
    coding = coding_of(source, task, forms)
    content = write_content(directory, task, encoded_deltas(base, source, coding, meter))
    return EntryRecord(coding.name, content, provenance_of(source))


def _write_together(
    directory: Path, base: Checkpoint, sources: Sources, forms: Forms, meter: Meter
) -> tuple[SharedRecord, dict[str, EntryRecord]]:
    content, contents = SetWriter(base, sources, forms).write(directory, meter)
    provenances = {task: provenance_of(source) for task, source in sources.items()}
    bound = {task: provenance.digest for task, provenance in provenances.items()}
    derivation = Derivation(forms.scheme.name, forms.settings(), bound)
    shared = SharedRecord(str(shared_scheme(forms.scheme)), content, derivation)
    scheme = str(forms.scheme)
    return shared, {
        task: EntryRecord(scheme, contents[task], provenances[task], content.digest)
        for task in sources
    }


def _archive(
    directory: Path, base: Checkpoint, task: str, source: Source, forms: Forms
) -> Content | None:
    """A fine-tune's exact content beside what is served, where it is kept."""
    if is_adapter(source) or (forms.plan is None and forms.scheme == EXACT):
        return None
    if isinstance(source, Archive):
        return source.bank.entry(source.task).exact
    if not forms.is_archived:
        return None
    coding = Coding(EXACT.name, EXACT)
    return write_content(directory, task, encoded_deltas(base, source, coding, Meter(None, 0)))
