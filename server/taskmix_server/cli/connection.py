"""Which server a command talks to, and as whom."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from taskmix_client import Client, TaskMixError

DEFAULT_SERVER = "127.0.0.1:50051"


@dataclass(frozen=True, slots=True)
class Server:
    """A server's gRPC address, the key that it asks for, and how to know it."""

    address: str
    api_key: str | None = None
    tls: bool = False
    ca: Path | None = None


def server_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the flags that say which server; the command gets them as `server`."""

    @wraps(command)
    def run(*, server: str, api_key: str | None, tls: bool, ca: Path | None, **options: Any) -> Any:
        return command(server=Server(server, api_key, tls, ca), **options)

    for option in reversed(_OPTIONS):
        option(run)
    return run


_OPTIONS = (
    click.option(
        "--server",
        default=DEFAULT_SERVER,
        show_default=True,
        envvar="TASKMIX_SERVER",
        metavar="HOST:PORT",
        help="The server's gRPC address.",
    ),
    click.option(
        "--api-key",
        envvar="TASKMIX_API_KEY",
        show_envvar=True,
        help="The key that the server asks for; safer in the environment than here.",
    ),
    click.option("--tls", is_flag=True, envvar="TASKMIX_TLS", help="Speak TLS."),
    click.option(
        "--ca",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        envvar="TASKMIX_CA",
        show_envvar=True,
        help="Speak TLS, and trust the authorities in this PEM file instead of the system's.",
    ),
)


@contextmanager
def connected(server: Server) -> Iterator[Client]:
    """Open a client; a refusal ends the command with its message and status 1."""
    try:
        with Client(server.address, server.api_key, tls=server.tls, ca=server.ca) as client:
            yield client
    except TaskMixError as error:
        raise click.ClickException(str(error)) from error
