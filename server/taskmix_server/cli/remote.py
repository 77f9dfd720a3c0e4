"""The verbs that talk to a running server: generate, tasks, mixes."""

from collections.abc import Sequence
from typing import Any

import click

from taskmix_client import Answer, NamedMix, Task
from taskmix_server.cli.connection import Server, connected, server_options
from taskmix_server.cli.table import print_table


@click.command()
@server_options
@click.option("--mix", help="A mix, such as math:0.6+code:-0.3, or its JSON form.")
@click.option("--mix-name", metavar="NAME", help="A registered mix.")
@click.option("--experiment", metavar="NAME", help="An experiment; goes with --subject.")
@click.option("--subject", help="Whom the experiment assigns.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="The most tokens to generate.")
@click.option("--temperature", type=click.FloatRange(min=0.0), help="0 is greedy.")
@click.option("--stream", is_flag=True, help="Print the text as it comes.")
@click.argument("prompt")
def generate(server: Server, stream: bool, prompt: str, **options: Any) -> None:
    """Continue PROMPT under a mix; without one, under the base."""
    _check_target(options)
    with connected(server) as client:
        if stream:
            for chunk in client.stream(prompt, **options):
                click.echo(chunk.text, nl=False)
            click.echo()
        else:
            answer: Answer = client.generate(prompt, **options)
            click.echo(answer.text)


@click.group()
def tasks() -> None:
    """The tasks of the served bank."""


@tasks.command("list")
@server_options
def list_tasks(server: Server) -> None:
    """List the tasks and where each of them is."""
    with connected(server) as client:
        _print_tasks(client.tasks())


@tasks.command("load")
@server_options
@click.argument("name")
def load_task(server: Server, name: str) -> None:
    """Make task NAME of the bank directory servable."""
    with connected(server) as client:
        _print_tasks([client.load_task(name)])


@tasks.command("unload")
@server_options
@click.argument("name")
def unload_task(server: Server, name: str) -> None:
    """Make task NAME unservable."""
    with connected(server) as client:
        _print_tasks([client.unload_task(name)])


@click.group()
def mixes() -> None:
    """The mixes that the server knows by name."""


@mixes.command("list")
@server_options
def list_mixes(server: Server) -> None:
    """List the named mixes."""
    with connected(server) as client:
        _print_mixes(client.mixes())


@mixes.command("register")
@server_options
@click.argument("name")
@click.argument("mix")
def register_mix(server: Server, name: str, mix: str) -> None:
    """Give MIX the name NAME."""
    with connected(server) as client:
        _print_mixes([client.register_mix(name, mix)])


@mixes.command("delete")
@server_options
@click.argument("name")
def delete_mix(server: Server, name: str) -> None:
    """Forget the mix NAME."""
    with connected(server) as client:
        client.delete_mix(name)
        click.echo(f"deleted {name}")


def _check_target(options: dict[str, Any]) -> None:
    flags = {"--mix": "mix", "--mix-name": "mix_name", "--experiment": "experiment"}
    given = [flag for flag, name in flags.items() if options[name] is not None]
    if len(given) > 1:
        raise click.UsageError(f"{' and '.join(given)} exclude each other")
    if (options["experiment"] is None) != (options["subject"] is None):
        raise click.UsageError("--experiment and --subject go together")


def _print_tasks(listed: Sequence[Task]) -> None:
    rows = [
        (task.name, task.scheme, str(task.num_bytes), task.state, str(task.num_references))
        for task in listed
    ]
    print_table(("task", "scheme", "bytes", "state", "in use by"), rows)


def _print_mixes(listed: Sequence[NamedMix]) -> None:
    rows = [(mix.name, mix.mix_digest[:16], mix.mix) for mix in listed]
    print_table(("mix", "digest", "terms"), rows)
