"""taskmix export: a mix as an ordinary checkpoint."""

from pathlib import Path

import click

from taskmix_composer.bank import Bank
from taskmix_composer.checkpoint import Checkpoint
from taskmix_composer.export import export_checkpoint
from taskmix_composer.recipe import expanded, parse_mix
from taskmix_server.cli.options import DIRECTORY, bank_argument, base_option


@click.command()
@bank_argument
@base_option
@click.option("--mix", required=True, help="A mix, such as math:0.6+code:-0.3, or its JSON form.")
@click.option("--out", required=True, type=DIRECTORY, help="Where to write the checkpoint.")
@click.option(
    "--as-served",
    "is_as_served",
    is_flag=True,
    help="Add what a server adds, also where the bank has the exact fine-tune.",
)
def export(path: Path, base: Path, mix: str, out: Path, is_as_served: bool) -> None:
    """Write a mix as a Hugging Face checkpoint in the base's own dtype.

    Exact entries are used where the bank has them: one whole task comes back bit for bit.
    """
    bank = Bank.open(path)
    wanted = expanded(parse_mix(mix), bank)
    export_checkpoint(bank, Checkpoint.open(base), wanted, out, is_as_served=is_as_served)
    click.echo(f"{out}: {wanted}")
