"""The verbs on experiments: from a draft to a decision."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from taskmix_client import Experiment, Outcome
from taskmix_server.cli.connection import Server, connected, server_options
from taskmix_server.cli.drafting import design_options, to_design
from taskmix_server.cli.results import print_results, write_plot
from taskmix_server.cli.table import print_table

version_option = click.option("--version", type=click.IntRange(1), help="Of which version.")


@click.group()
def experiments() -> None:
    """Splits of traffic over mixes, and what they tell."""


@experiments.command("create")
@server_options
@design_options
@click.option("--ramp", type=float, metavar="PERCENT", help="Subjects that take part; 100 %.")
@click.option("--new-version", is_flag=True, help="Of an experiment that exists.")
@click.argument("name")
def create(
    server: Server, name: str, ramp: float | None, new_version: bool, **options: Any
) -> None:
    """Make a draft of experiment NAME. The first --arm is the control."""
    design = to_design(name, options)
    with connected(server) as client:
        created = client.create_experiment(design, ramp_percent=ramp, is_new_version=new_version)
        _print_experiments([created])


@experiments.command("list")
@server_options
def list_experiments(server: Server) -> None:
    """List the newest version of each experiment."""
    with connected(server) as client:
        _print_experiments(client.experiments())


@experiments.command("show")
@server_options
@version_option
@click.argument("name")
def show(server: Server, name: str, version: int | None) -> None:
    """Print all of experiment NAME as JSON."""
    with connected(server) as client:
        shown = asdict(client.experiment(name, version))
        click.echo(json.dumps(shown, indent=2, default=_moment))


@experiments.command("start")
@server_options
@click.argument("name")
def start(server: Server, name: str) -> None:
    """Let the draft of NAME take requests; a version that runs stops."""
    with connected(server) as client:
        _print_experiments([client.start_experiment(name)])


@experiments.command("ramp")
@server_options
@version_option
@click.argument("name")
@click.argument("percent", type=float)
def ramp(server: Server, name: str, percent: float, version: int | None) -> None:
    """Let PERCENT of the subjects take part. Raising it moves nobody who takes part already."""
    with connected(server) as client:
        _print_experiments([client.ramp_experiment(name, percent, version)])


@experiments.command("stop")
@server_options
@click.option("--arm", default="", help="Only this arm; the control answers its subjects.")
@click.option("--why", default="", help="What to write down.")
@click.argument("name")
def stop(server: Server, name: str, arm: str, why: str) -> None:
    """End the running version of NAME. Outcomes are taken for a week after that."""
    with connected(server) as client:
        _print_experiments([client.stop_experiment(name, arm=arm, why=why)])


@experiments.command("promote")
@server_options
@version_option
@click.option("--arm", required=True, help="The winner.")
@click.option("--as", "mix_name", required=True, metavar="MIX_NAME", help="What to name its mix.")
@click.argument("name")
def promote(server: Server, name: str, arm: str, mix_name: str, version: int | None) -> None:
    """Let MIX_NAME mean the mix of an arm of NAME, whatever it meant before."""
    with connected(server) as client:
        _print_experiments([client.promote_experiment(name, arm, mix_name, version)])


@experiments.command("rollback")
@server_options
@version_option
@click.argument("name")
def rollback(server: Server, name: str, version: int | None) -> None:
    """Undo the promotion of NAME: the mix's name means what it meant before."""
    with connected(server) as client:
        _print_experiments([client.rollback_experiment(name, version)])


@experiments.command("record")
@server_options
@click.option("--metric", help="The metric's name.")
@click.option("--value", type=float, help="The value.")
@click.option("--subject", help="Of which subject.")
@click.option("--request", "request_id", metavar="ID", help="Of which request, by its answer's id.")
@click.option("--key", help="Makes the outcome count once; a random one if absent.")
@click.option(
    "--file",
    "path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Many outcomes, all or none: a line of JSON each, with metric, value, subject or "
    "request_id, key.",
)
@click.argument("name")
def record(server: Server, name: str, path: Path | None, **fields: Any) -> None:
    """Report an outcome of experiment NAME, or a file of them."""
    given = {field: value for field, value in fields.items() if value is not None}
    if (path is None) == (not given):
        raise click.UsageError("give --metric, --value and --subject or --request; or --file")
    outcomes = [_outcome(given)] if path is None else _read_outcomes(path)
    with connected(server) as client:
        recorded = client.record_outcomes(name, outcomes)
        click.echo(f"recorded {recorded.num_new}, known already {recorded.num_known}")


@experiments.command("results")
@server_options
@version_option
@click.option("--ratio", "ratios", multiple=True, metavar="A/B", help="A metric to add; repeated.")
@click.option("--alpha", type=float, help="1 - the intervals' confidence; 0.05 if absent.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.png",
    help="Draw the differences from the control with their intervals.",
)
@click.argument("name")
def results(
    server: Server,
    name: str,
    version: int | None,
    ratios: tuple[str, ...],
    alpha: float | None,
    plot: Path | None,
) -> None:
    """Print what experiment NAME tells so far. Looking often is safe."""
    with connected(server) as client:
        found = client.experiment_results(name, version=version, ratios=ratios, alpha=alpha)
    print_results(found)
    if plot is not None:
        write_plot(found, plot)


def _print_experiments(listed: Sequence[Experiment]) -> None:
    rows = [
        (
            item.name,
            str(item.version),
            item.status,
            f"{item.ramp_percent:g} %",
            " ".join(f"{arm.name}={arm.share:g}" for arm in item.design.arms),
            _note(item),
        )
        for item in listed
    ]
    print_table(("experiment", "version", "status", "ramp", "arms", "note"), rows)


def _note(item: Experiment) -> str:
    """What an operator should know at once."""
    notes = [f"{halt.arm} was stopped: {halt.why}" for halt in item.halted]
    if item.promotion is not None:
        notes.append(f"{item.promotion.arm} is {item.promotion.mix_name}")
    elif item.why:
        notes.append(item.why)
    return "; ".join(notes) or "-"


def _read_outcomes(path: Path) -> list[Outcome]:
    outcomes = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise click.UsageError(f"{path}:{number} is not JSON: {error}") from error
        outcomes.append(_outcome(fields))
    return outcomes


def _outcome(fields: Any) -> Outcome:
    try:
        at = fields.get("at")
        return Outcome(**{**fields, "at": datetime.fromisoformat(at) if at else None})
    except (AttributeError, TypeError, ValueError) as error:
        raise click.UsageError(f"{fields!r:.80} is not an outcome: {error}") from error


def _moment(moment: datetime) -> str:
    return moment.isoformat()
