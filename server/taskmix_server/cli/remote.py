"""The verbs that talk to a running server: generate, tasks, mixes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click

from taskmix_client import Answer, Client, NamedMix, Task, TaskMixError

DEFAULT_SERVER = "127.0.0.1:50051"
FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def server_options(command: FunctionT) -> FunctionT:
    """Add the flags that say which server, and as whom."""
    server = click.option(
        "--server",
        default=DEFAULT_SERVER,
        show_default=True,
        envvar="TASKMIX_SERVER",
        metavar="HOST:PORT",
        help="The server's gRPC address.",
    )
    api_key = click.option(
        "--api-key",
        envvar="TASKMIX_API_KEY",
        show_envvar=True,
        help="The key that the server asks for.",
    )
    return server(api_key(command))


@contextmanager
def connected(server: str, api_key: str | None) -> Iterator[Client]:
    """Open a client; a refusal ends the command with its message and status 1."""
    try:
        with Client(server, api_key) as client:
            yield client
    except TaskMixError as error:
        raise click.ClickException(str(error)) from error


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
def generate(server: str, api_key: str | None, stream: bool, prompt: str, **options: Any) -> None:
    """Continue PROMPT under a mix; without one, under the base."""
    _check_target(options)
    with connected(server, api_key) as client:
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
def list_tasks(server: str, api_key: str | None) -> None:
    """List the tasks and where each of them is."""
    with connected(server, api_key) as client:
        _print_tasks(client.tasks())


@tasks.command("load")
@server_options
@click.argument("name")
def load_task(server: str, api_key: str | None, name: str) -> None:
    """Make task NAME of the bank directory servable."""
    with connected(server, api_key) as client:
        _print_tasks([client.load_task(name)])


@tasks.command("unload")
@server_options
@click.argument("name")
def unload_task(server: str, api_key: str | None, name: str) -> None:
    """Make task NAME unservable."""
    with connected(server, api_key) as client:
        _print_tasks([client.unload_task(name)])


@click.group()
def mixes() -> None:
    """The mixes that the server knows by name."""


@mixes.command("list")
@server_options
def list_mixes(server: str, api_key: str | None) -> None:
    """List the named mixes."""
    with connected(server, api_key) as client:
        _print_mixes(client.mixes())


@mixes.command("register")
@server_options
@click.argument("name")
@click.argument("mix")
def register_mix(server: str, api_key: str | None, name: str, mix: str) -> None:
    """Give MIX the name NAME."""
    with connected(server, api_key) as client:
        _print_mixes([client.register_mix(name, mix)])


@mixes.command("delete")
@server_options
@click.argument("name")
def delete_mix(server: str, api_key: str | None, name: str) -> None:
    """Forget the mix NAME."""
    with connected(server, api_key) as client:
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
    _print_table(("task", "scheme", "bytes", "state", "in use by"), rows)


def _print_mixes(listed: Sequence[NamedMix]) -> None:
    rows = [(mix.name, mix.mix_digest[:16], mix.mix) for mix in listed]
    _print_table(("mix", "digest", "terms"), rows)


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(head, *rows, strict=True)]
    for row in (head, *rows):
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
