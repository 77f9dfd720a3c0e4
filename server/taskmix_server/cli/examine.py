"""The verbs that read banks: bank inspect, verify."""

import json
from pathlib import Path

import click

from taskmix_composer.bank import Bank
from taskmix_composer.verify import TaskError, verify_bank
from taskmix_server.cli.inspection import print_summary, summary
from taskmix_server.cli.options import (
    DIRECTORY,
    Directories,
    NamedDirectory,
    bank_argument,
    by_name,
)


@click.command()
@bank_argument
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def inspect(path: Path, as_json: bool) -> None:
    """Show tasks, schemes, sizes, planes and the base's identity."""
    opened = summary(Bank.open(path))
    if as_json:
        click.echo(json.dumps(opened, indent=2))
    else:
        print_summary(opened)


@click.command()
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
    checked = verify_bank(path, base, by_name(against, "--against"))
    for error in checked.errors:
        _print_errors(error)
    click.echo(
        f"{path}: {checked.num_entries} tasks, {checked.num_tensors} deltas, "
        f"{checked.num_bytes} bytes, all intact (revision {checked.revision})"
    )


def _print_errors(error: TaskError) -> None:
    width = max((len(tensor) for tensor in error.by_tensor), default=0)
    click.echo(f"{error.task}: relative L2 error {error.relative_l2:.3e}")
    for tensor, value in error.by_tensor.items():
        click.echo(f"  {tensor.ljust(width)}  {value:.3e}")
