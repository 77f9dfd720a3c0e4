"""Thousands of unexpected inputs to every RPC and route that takes one; the short version is
tests/fuzz/test_edges.py."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from benchmarks.record import append, provenance
from tests.support.examples import RPCS
from tests.support.fuzzing import Tally, fuzz_grpc, fuzz_http, short_answers, still_answers
from tests.support.guarded import Guarded, guarding
from tests.support.models import make_models

EDGES = ("grpc", "http")
NUM_ROUNDS = 10
NUM_ROUTES = 2


@click.command()
@click.option("--inputs", type=click.IntRange(1000), default=10_000, show_default=True)
@click.option("--edge", "edges", type=click.Choice(EDGES), multiple=True, default=EDGES)
def main(inputs: int, edges: Sequence[str]) -> None:
    """Send so many inputs to each edge, print what was answered, and append to results/fuzz.jsonl;
    fail if an answer was the server's own fault."""
    provenance()  # before the first line changes a file
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with guarding(make_models(directory), directory) as guarded:
            with short_answers(guarded):
                tallies = {edge: _fuzzed(guarded, edge, inputs) for edge in edges}
            still_answers(guarded)
    for edge, tallied in tallies.items():
        _report(edge, tallied)
    faults = [fault for found in tallies.values() for one in found.values() for fault in one.faults]
    if faults:
        raise click.ClickException("\n".join(faults))


def _fuzzed(guarded: Guarded, edge: str, num_inputs: int) -> Mapping[str, Tally]:
    if edge == "grpc":
        return fuzz_grpc(guarded, NUM_ROUNDS, -(-num_inputs // (len(RPCS) * NUM_ROUNDS)))
    return fuzz_http(guarded, -(-num_inputs // NUM_ROUTES))


def _report(edge: str, tallies: Mapping[str, Tally]) -> None:
    statuses = {name: dict(tally.statuses) for name, tally in tallies.items()}
    num_inputs = sum(tally.statuses.total() for tally in tallies.values())
    num_faults = sum(len(tally.faults) for tally in tallies.values())
    append(
        "fuzz",
        {"edge": edge, "num_inputs": num_inputs, "num_faults": num_faults, "statuses": statuses},
    )
    click.echo(f"{edge}: {num_inputs} inputs, {num_faults} faults")
    for name, seen in statuses.items():
        click.echo(f"  {name}: {', '.join(f'{n} {status}' for status, n in sorted(seen.items()))}")


if __name__ == "__main__":
    main()
