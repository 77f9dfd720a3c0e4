"""The verbs that write banks: bank build, add, remove, recode."""

from dataclasses import replace
from pathlib import Path

import click

from taskmix_composer.adapter import open_finetuned
from taskmix_composer.bank import Bank
from taskmix_composer.build import add_task, build_bank, recode_bank, remove_task, usual_forms
from taskmix_composer.encoding import is_adapter
from taskmix_composer.entries import set_sources
from taskmix_composer.forms import DEFAULT, Forms
from taskmix_server.cli.examine import inspect, verify
from taskmix_server.cli.merging import merge, plane
from taskmix_server.cli.options import (
    DIRECTORY,
    TASK_HELP,
    Directories,
    NamedDirectory,
    bank_argument,
    base_option,
    by_name,
    names,
    progress_bar,
    report,
    scheme_option,
)
from taskmix_server.cli.planning import plan, planned_forms


@click.group()
def bank() -> None:
    """Build, change and check banks of task vectors."""


for command in (inspect, verify, merge, plane, plan):
    bank.add_command(command)


class Threshold(click.ParamType[tuple[str, float]]):
    """NAME=NUMBER."""

    name = "NAME=NUMBER"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float]:
        task, _, number = value.partition("=")
        try:
            return task, float(number)
        except ValueError:
            self.fail(f"{value!r} is not of the form NAME=NUMBER", param, ctx)


Thresholds = tuple[tuple[str, float], ...]
thresholds_option = click.option(
    "--lambda",
    "thresholds",
    multiple=True,
    type=Threshold(),
    help="tall's lambda of one task, in place of the scheme's.",
)


@bank.command()
@base_option
@click.option(
    "--task", "tasks", required=True, multiple=True, type=NamedDirectory(), help=TASK_HELP
)
@scheme_option
@click.option(
    "--group", type=click.IntRange(min=0), help="Columns that share a scale; 0 is per tensor."
)
@thresholds_option
@click.option("--out", required=True, type=DIRECTORY, metavar="BANK", help="Where to write it.")
def build(
    base: Path,
    tasks: Directories,
    scheme: str | None,
    group: int | None,
    thresholds: Thresholds,
    out: Path,
) -> None:
    """Build a bank of task vectors, under int4 unless --scheme says otherwise.

    @PLAN.json in place of a scheme follows a plan of `bank plan`.
    """
    sources = by_name(tasks, "--task")
    forms = planned_forms(scheme or DEFAULT.name, base, sources, group=group)
    with progress_bar("building") as progress:
        built = build_bank(
            base, sources, replace(forms, thresholds=dict(thresholds)), out, progress
        )
    report(built)


@bank.command()
@bank_argument
@base_option
@click.option("--task", required=True, type=NamedDirectory(), help=TASK_HELP)
@scheme_option
@click.option(
    "--freeze-shared",
    "is_frozen",
    is_flag=True,
    help="Under rtvq, tall and emr: code the task over the shared vector as it stands.",
)
def add(
    path: Path, base: Path, task: tuple[str, Path], scheme: str | None, is_frozen: bool
) -> None:
    """Add a task, in the form most of the bank's tasks have unless --scheme says otherwise.

    Under rtvq, tall and emr the shared vector is made of all its tasks: adding one codes the
    others anew, from their exact entries, unless --freeze-shared is given.
    """
    name, source = task
    opened = Bank.open(path)
    forms = usual_forms(opened) if scheme is None else Forms.parse(scheme)
    forms = replace(forms, is_frozen=is_frozen)
    rewritten = {} if is_adapter(open_finetuned(source)) else set_sources(opened, forms)
    if rewritten:
        click.echo(
            f"rewriting {', '.join(rewritten)}: under {forms.scheme} they share a vector that is "
            f"made of all its tasks, {name} included",
            err=True,
        )
    with progress_bar(f"adding {name}") as progress:
        changed = add_task(path, base, name, source, forms, progress)
    report(changed)


@bank.command()
@bank_argument
@click.argument("name")
def remove(path: Path, name: str) -> None:
    """Remove the task, or the plane, called NAME."""
    report(remove_task(path, name))


@bank.command()
@bank_argument
@base_option
@click.option("--scheme", required=True, metavar="SCHEME", help="The form to give them.")
@click.option("--tasks", metavar="a,b", help="Only these; by default all fine-tuned models.")
@thresholds_option
def recode(path: Path, base: Path, scheme: str, tasks: str | None, thresholds: Thresholds) -> None:
    """Give tasks another form, made from the bank's exact entries, which stay."""
    forms = replace(Forms.parse(scheme), thresholds=dict(thresholds))
    with progress_bar("recoding") as progress:
        changed = recode_bank(path, base, forms, names(tasks), progress)
    report(changed)
