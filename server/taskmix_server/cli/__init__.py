"""The `taskmix` command: a table of verbs, each imported only when it is run."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from taskmix_composer.errors import ComposerError
from taskmix_server.errors import ServingError

__all__ = ["VERBS", "main"]


@dataclass(frozen=True, slots=True)
class Verb:
    """Where a verb's command lives, what must be installed to run it, and its line of help."""

    location: str
    extra: str
    help: str


VERBS: Mapping[str, Verb] = {
    "bank": Verb("taskmix_server.cli.bank:bank", "composer", "Build, change and check banks."),
    "export": Verb("taskmix_server.cli.export:export", "composer", "Write a mix as a checkpoint."),
    "serve": Verb("taskmix_server.cli.serve:serve", "server", "Serve a base and its bank."),
    "generate": Verb("taskmix_server.cli.remote:generate", "", "Ask a server for text."),
    "tasks": Verb("taskmix_server.cli.remote:tasks", "", "List, load and unload tasks."),
    "mixes": Verb("taskmix_server.cli.remote:mixes", "", "List, name and forget mixes."),
    "experiments": Verb(
        "taskmix_server.cli.experiments:experiments", "", "Compare mixes on live traffic."
    ),
    "tenants": Verb("taskmix_server.cli.tenants:tenants", "", "Say who may use a server."),
    "keys": Verb("taskmix_server.cli.tenants:keys", "", "Make and revoke tenants' API keys."),
    "audit": Verb("taskmix_server.cli.tenants:audit", "", "List what was changed, and by whom."),
}


class VerbGroup(click.Group):
    """Finds verbs in the table and turns refusals into one line and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        verb = VERBS[cmd_name]
        module, _, attribute = verb.location.partition(":")
        try:
            command: click.Command = getattr(importlib.import_module(module), attribute)
        except ImportError as error:
            raise click.ClickException(_missing(cmd_name, verb, error)) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs from the table, so that help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.help) for name, verb in VERBS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.Abort, click.exceptions.Exit, BrokenPipeError):
            raise
        except (ComposerError, ServingError, OSError) as error:
            raise click.ClickException(str(error)) from error
        except Exception as error:
            name = type(error).__name__
            raise click.ClickException(
                f"{name}: {error}; this is a defect of taskmix, please report it"
            ) from error


@click.group(cls=VerbGroup)
@click.version_option(package_name="taskmix")
def main() -> None:
    """Serve one base model under many mixes of its compressed fine-tunes."""


def _missing(name: str, verb: Verb, error: ImportError) -> str:
    package = f"taskmix[{verb.extra}]" if verb.extra else "taskmix"
    return f"`taskmix {name}` cannot be loaded ({error}); run: pip install '{package}'"
