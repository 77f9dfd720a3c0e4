"""What commands on banks have in common: arguments, options, a progress bar."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from taskmix_composer.bank import Bank
from taskmix_composer.progress import Progress


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
SCHEME_HELP = (
    "exact, dense, dense16, int8, int4, int3, int2, rtvq, tall, emr, sign, sparse or lowrank, "
    "with options as in tall(mtl=4); exact,int4 keeps the fine-tunes' own bits too."
)
bank_argument = click.argument("path", metavar="BANK", type=DIRECTORY)
base_option = click.option(
    "--base", required=True, type=DIRECTORY, help="The base model's directory."
)
scheme_option = click.option("--scheme", metavar="SCHEME", help=SCHEME_HELP)
TASK_HELP = "A task's name and its fine-tuned model or LoRA adapter."


def by_name(directories: Directories, flag: str) -> dict[str, Path]:
    """The directories as a mapping; a name given twice is a usage error."""
    named = dict(directories)
    if len(named) != len(directories):
        raise click.UsageError(f"{flag} names a task twice; give each one a name of its own")
    return named


def names(listed: str | None) -> tuple[str, ...]:
    """Read `a,b,c`."""
    return tuple(name.strip() for name in listed.split(",") if name.strip()) if listed else ()


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """A bar on stderr where that is a terminal."""
    is_hidden = not sys.stderr.isatty()
    with click.progressbar(length=1, label=label, file=sys.stderr, hidden=is_hidden) as bar:

        def show(done: int, total: int) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        yield show


def report(changed: Bank) -> None:
    """Say what a bank holds now."""
    tasks = ", ".join(sorted(changed.entries)) or "no tasks"
    click.echo(f"{changed.path}: {tasks} (revision {changed.revision})")
