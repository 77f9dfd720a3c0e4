"""bank plan: a scheme per tensor under a byte budget."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from taskmix_composer.archive import Archive
from taskmix_composer.bank import Bank
from taskmix_composer.build import open_source
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.errors import InvalidSchemeError
from taskmix_composer.forms import Forms
from taskmix_composer.mix import check_name
from taskmix_composer.plan import PLANNED, Plan
from taskmix_composer.planning import Effects, Forecast, make_plan
from taskmix_composer.taskvector import Source
from taskmix_server.cli.options import (
    DIRECTORY,
    TASK_HELP,
    Directories,
    NamedDirectory,
    base_option,
    by_name,
    progress_bar,
)
from taskmix_server.cli.table import print_table

_PLANNED = re.compile(r"(?P<exact>exact *, *)?planned\( *budget *= *(?P<budget>[0-9]{1,15}) *\)")
LEFT_OUT = "left out"


@click.command()
@base_option
@click.option("--task", "tasks", multiple=True, type=NamedDirectory(), help=TASK_HELP)
@click.option(
    "--bank",
    "bank_path",
    type=DIRECTORY,
    metavar="BANK",
    help="Plan the fine-tunes that this bank archives, besides those of --task.",
)
@click.option(
    "--budget",
    "budget_bytes",
    required=True,
    type=click.IntRange(min=0),
    metavar="BYTES",
    help="What the tasks' shards may have together.",
)
@click.option(
    "--prompts",
    type=DIRECTORY,
    metavar="FILE",
    help="Prompts, one a line, on which to measure what each tensor does.",
)
@click.option("--out", required=True, type=DIRECTORY, metavar="PLAN.json", help="Where to write.")
def plan(
    base: Path,
    tasks: Directories,
    bank_path: Path | None,
    budget_bytes: int,
    prompts: Path | None,
    out: Path,
) -> None:
    """Choose a scheme per tensor so that all fit a budget and lose least.

    Follow the plan with `bank build --scheme @PLAN.json`.
    """
    checkpoint = Checkpoint.open(base)
    sources = _sources(checkpoint, by_name(tasks, "--task"), bank_path)
    if not sources:
        raise click.UsageError("name a task to plan for with --task or --bank")
    effects = None if prompts is None else _effects(checkpoint, sources, prompts)
    with progress_bar("measuring") as progress:
        made, forecasts = make_plan(checkpoint, sources, budget_bytes, effects, progress)
    made.write(out)
    _print_forecasts(made, forecasts)
    _print_schemes(made, checkpoint)


def planned_forms(
    text: str, base: Path, tasks: Mapping[str, Path], *, group: int | None = None
) -> Forms:
    """Read a scheme as `Forms.parse` does, and `planned(budget=BYTES)` by making the plan."""
    match = _PLANNED.fullmatch(text.strip())
    if match is None:
        if PLANNED in text and "@" not in text:
            raise InvalidSchemeError(f"cannot read {text!r}; write {PLANNED}(budget=BYTES)")
        return Forms.parse(text, group=group)
    if group is not None:
        raise click.UsageError("a plan chooses its own groups; leave --group out")
    checkpoint = Checkpoint.open(base)
    with progress_bar("measuring") as progress:
        made, _ = make_plan(
            checkpoint,
            _sources(checkpoint, tasks, None),
            int(match["budget"]),
            progress=progress,
        )
    return Forms(plan=made, is_archived=match["exact"] is not None)


def _sources(
    base: Checkpoint, directories: Mapping[str, Path], bank_path: Path | None
) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    if bank_path is not None:
        bank = Bank.open(bank_path)
        bank.check_base(base)
        archived = [task for task, entry in bank.entries.items() if entry.exact is not None]
        sources |= {task: Archive.open(bank, task) for task in archived}
    for task, directory in directories.items():
        sources[check_name(task)] = open_source(base, directory)
    return sources


def _effects(base: Checkpoint, sources: Mapping[str, Source], path: Path) -> Effects:
    prompts = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not prompts:
        raise click.ClickException(f"{path} has no prompts; write one a line")
    try:
        from taskmix_server.calibration import tensor_effects
    except ImportError as error:
        raise click.ClickException(
            f"--prompts runs the model, which needs more ({error}); run: pip install "
            "'taskmix[server]', or leave --prompts out"
        ) from None
    return tensor_effects(base, sources, prompts)


def _print_forecasts(made: Plan, forecasts: Mapping[str, Forecast]) -> None:
    rows = [
        (task, str(forecast.num_bytes), f"{forecast.error:.3%}")
        for task, forecast in sorted(forecasts.items())
    ]
    total = ("total", str(made.predicted_bytes), f"{made.predicted_error:.3%}")
    print_table(("task", "predicted bytes", "predicted error"), [*rows, total])


def _print_schemes(made: Plan, base: Checkpoint) -> None:
    tensors: Counter[str] = Counter()
    parameters: Counter[str] = Counter()
    for tensor, name in _named_schemes(made):
        tensors[name] += 1
        parameters[name] += base.tensors[tensor].num_parameters
    total = parameters.total() or 1
    rows = [
        (name, str(tensors[name]), f"{num_parameters / total:.2%}")
        for name, num_parameters in parameters.most_common()
    ]
    click.echo()
    print_table(("scheme", "tensors", "of the parameters"), rows)


def _named_schemes(made: Plan) -> Iterable[tuple[str, str]]:
    for schemes in made.schemes.values():
        for tensor, scheme in schemes.items():
            yield tensor, LEFT_OUT if scheme is None else str(scheme)
