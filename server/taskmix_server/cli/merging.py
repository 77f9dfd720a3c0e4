"""bank merge and bank plane: publish what is computed from tasks, or from planes."""

from pathlib import Path

import click

from taskmix_composer.config import Scheme
from taskmix_composer.merge import MERGE_METHODS, parse_params
from taskmix_composer.planes import combine_planes
from taskmix_composer.publish import MergeRequest, merge_tasks
from taskmix_composer.recipe import SCALAR_METHODS
from taskmix_server.cli.options import (
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


@click.command()
@bank_argument
@base_option
@click.option("--method", required=True, help=f"{', '.join(MERGE_METHODS)}.")
@click.option("--tasks", required=True, metavar="a,b,c", help="The tasks to merge.")
@click.option("--param", "params", multiple=True, metavar="k=v", help="A method's parameter.")
@click.option(
    "--from",
    "directories",
    multiple=True,
    type=NamedDirectory(),
    help="Where a task's original is, if the bank has no exact entry of it.",
)
@click.option("--from-bank", is_flag=True, help="Merge what the bank decodes to, for want of it.")
@click.option("--planes", "is_planes", is_flag=True, help="Publish masks over the tasks instead.")
@scheme_option
@click.option("--name", required=True, help="The name of the new entry, or of its planes.")
def merge(  # noqa: PLR0917 - a command takes its options by name
    path: Path,
    base: Path,
    method: str,
    tasks: str,
    params: tuple[str, ...],
    directories: Directories,
    from_bank: bool,
    is_planes: bool,
    scheme: str | None,
    name: str,
) -> None:
    """Merge tasks by a method that looks at their weights, and publish the result.

    The result holds for these tasks only and is an entry of the bank, named like a task; with
    --planes it is a mask per task, and the mix that uses them is printed.
    """
    if method in SCALAR_METHODS and method not in MERGE_METHODS:
        raise click.UsageError(
            f"{method} needs no merge: name it in a mix, as in "
            f'{{"method": "{method}", "tasks": [...]}}'
        )
    request = MergeRequest(
        method=method,
        tasks=names(tasks),
        params=parse_params(method, params),
        name=name,
        scheme=None if scheme is None else Scheme.parse(scheme),
        is_planes=is_planes,
        directories=by_name(directories, "--from"),
        is_from_bank=from_bank,
    )
    with progress_bar(f"merging into {name}") as progress:
        changed, mix = merge_tasks(path, base, request, progress)
    report(changed)
    click.echo(f"mix: {mix}")


@click.command()
@bank_argument
@click.option(
    "--of", "masks", required=True, metavar="p,q,...", help="Planes; !p is what p leaves out."
)
@click.option(
    "--at-least",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="How many of them must keep a weight: 1 for any, as many as are named for all.",
)
@click.option("--name", required=True, help="The name of the new plane.")
def plane(path: Path, masks: str, at_least: int, name: str) -> None:
    """Make a plane of planes: the weights that at least so many of them keep.

    They must have been elected for one set of tasks, for which the new plane holds too.
    """
    report(combine_planes(path, names(masks), at_least, name))
