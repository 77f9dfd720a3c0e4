"""The verbs that work on banks: bank build, add, remove, inspect, verify; and export."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from taskmix_composer.bank import Bank
from taskmix_composer.build import Progress, add_task, build_bank, remove_task
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.config import Scheme
from taskmix_composer.export import export_checkpoint
from taskmix_composer.mix import Mix
from taskmix_composer.verify import TaskError, verify_bank
from taskmix_server.cli.inspection import print_summary, summary


class NamedDirectory(click.ParamType[tuple[str, Path]]):
    """NAME=DIR."""

    name = "NAME=DIR"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, Path]:
        name, separator, directory = value.partition("=")
        if not (name and separator and directory):
            self.fail(f"{value!r} is not of the form NAME=DIR", param, ctx)
        return name, Path(directory)


Directories = tuple[tuple[str, Path], ...]
DIRECTORY = click.Path(path_type=Path)
bank_argument = click.argument("path", metavar="BANK", type=DIRECTORY)
base_option = click.option(
    "--base", required=True, type=DIRECTORY, help="The base model's directory."
)
scheme_option = click.option(
    "--scheme", metavar="SCHEME", help="dense, dense16, int8, int4, int3 or int2."
)
task_help = "A task's name and its fine-tuned model or LoRA adapter."


@click.group()
def bank() -> None:
    """Build, change and check banks of task vectors."""


@bank.command()
@base_option
@click.option(
    "--task", "tasks", required=True, multiple=True, type=NamedDirectory(), help=task_help
)
@scheme_option
@click.option(
    "--group", type=click.IntRange(min=0), help="Columns that share a scale; 0 is per tensor."
)
@click.option("--out", required=True, type=DIRECTORY, metavar="BANK", help="Where to write it.")
def build(base: Path, tasks: Directories, scheme: str | None, group: int | None, out: Path) -> None:
    """Build a bank of task vectors, under int4 unless --scheme says otherwise."""
    chosen = Scheme.parse(scheme or "int4", group=group)
    sources = _by_name(tasks, "--task")
    with _progress("building") as progress:
        built = build_bank(base, sources, chosen, out, progress)
    _report(built)


@bank.command()
@bank_argument
@base_option
@click.option("--task", required=True, type=NamedDirectory(), help=task_help)
@scheme_option
def add(path: Path, base: Path, task: tuple[str, Path], scheme: str | None) -> None:
    """Add a task, under the scheme most of the bank's tasks use unless --scheme says otherwise."""
    name, source = task
    chosen = None if scheme is None else Scheme.parse(scheme)
    with _progress(f"adding {name}") as progress:
        changed = add_task(path, base, name, source, chosen, progress)
    _report(changed)


@bank.command()
@bank_argument
@click.argument("name")
def remove(path: Path, name: str) -> None:
    """Remove task NAME."""
    _report(remove_task(path, name))


@bank.command()
@bank_argument
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(path: Path, as_json: bool) -> None:
    """Show tasks, schemes, sizes, planes and the base's identity."""
    opened = summary(Bank.open(path))
    if as_json:
        click.echo(json.dumps(opened, indent=2))
    else:
        print_summary(opened)


@bank.command()
@bank_argument
@click.option("--base", type=DIRECTORY, help="Check that this is the bank's base.")
@click.option(
    "--against",
    multiple=True,
    type=NamedDirectory(),
    help="Measure a task against the model it was built from; needs --base.",
)
def verify(path: Path, base: Path | None, against: Directories) -> None:
    """Check every byte of a bank, and what its coding lost."""
    if against and base is None:
        raise click.UsageError("--against needs --base: the error is that of tuned minus base")
    report = verify_bank(path, base, _by_name(against, "--against"))
    for error in report.errors:
        _print_errors(error)
    click.echo(
        f"{path}: {report.num_entries} tasks, {report.num_tensors} deltas, "
        f"{report.num_bytes} bytes, all intact (revision {report.revision})"
    )


@click.command()
@bank_argument
@base_option
@click.option("--mix", required=True, help="A mix, such as math:0.6+code:-0.3, or its JSON form.")
@click.option("--out", required=True, type=DIRECTORY, help="Where to write the checkpoint.")
def export(path: Path, base: Path, mix: str, out: Path) -> None:
    """Write a mix as a Hugging Face checkpoint in the base's own dtype."""
    parsed = Mix.parse(mix)
    export_checkpoint(Bank.open(path), Checkpoint.open(base), parsed, out)
    click.echo(f"{out}: {parsed}")


def _by_name(directories: Directories, flag: str) -> dict[str, Path]:
    named = dict(directories)
    if len(named) != len(directories):
        raise click.UsageError(f"{flag} names a task twice; give each one a name of its own")
    return named


@contextmanager
def _progress(label: str) -> Iterator[Progress]:
    """A bar on stderr where that is a terminal."""
    is_hidden = not sys.stderr.isatty()
    with click.progressbar(length=1, label=label, file=sys.stderr, hidden=is_hidden) as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield show


def _report(changed: Bank) -> None:
    tasks = ", ".join(sorted(changed.entries)) or "no tasks"
    click.echo(f"{changed.path}: {tasks} (revision {changed.revision})")


def _print_errors(error: TaskError) -> None:
    width = max((len(tensor) for tensor in error.by_tensor), default=0)
    click.echo(f"{error.task}: relative L2 error {error.relative_l2:.3e}")
    for tensor, value in error.by_tensor.items():
        click.echo(f"  {tensor.ljust(width)}  {value:.3e}")
