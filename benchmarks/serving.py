"""Serving on CPU, end to end: taskmix and what it is compared with, in one run on one machine."""

import asyncio
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import click

from benchmarks import rivals, serving_report
from benchmarks.growth import MixStage, TaskStage, growing_mixes, growing_tasks
from benchmarks.latency import Latency, latency
from benchmarks.models import MANY_TASKS, SCHEME, SMALL_SCHEME, Models, prepare
from benchmarks.record import append, last_run, provenance
from benchmarks.rounds import FULL, QUICK, Contender, Effort, Rate, in_turns
from benchmarks.servers import CORES, taskmix
from benchmarks.workloads import HALF_SINGLE, IDLE, SIXTEEN_MIXES, TASKS, WORKLOADS
from taskmix_server.settings import default_cache

SPARE_TASKS = MANY_TASKS[len(TASKS) :]
"""Of the large bank: no request names them while latency is measured."""
STUDIED = "all"
"""The setting of cores under which latency, growth and the compiled base are measured."""

Measurement = Rate | Latency | TaskStage | MixStage


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, where servers keep their logs and state, how much of it, on which cores."""

    models: Models
    folder: Path
    effort: Effort
    cores: tuple[str, ...] = tuple(CORES)

    def all(self) -> Iterator[Measurement]:
        """Every measurement of a run; one server computes at a time."""
        for cores in self.cores:
            yield from self.contest(cores)
        if STUDIED in self.cores:
            yield from self.many_tasks(STUDIED)

    def contest(self, cores: str) -> Iterator[Measurement]:
        """All servers up at once, for rounds in turns."""
        models, where = self.models, (self.folder, cores)
        with ExitStack() as up:
            stock = up.enter_context(rivals.stock(models, *where))
            adapters = up.enter_context(rivals.adapters(models, *where))
            swapped = up.enter_context(rivals.swapped(models, *where))
            swap_round = partial(rivals.swap_round, swapped, models)
            mixes = up.enter_context(taskmix(models.base, models.bank, *where))
            small = up.enter_context(taskmix(models.base, models.small_bank, *where))
            contenders = [
                Contender.at_once("stock", stock, IDLE),
                Contender.at_once("adapters", adapters, rivals.ADAPTERS),
                Contender("swaps", swapped, SIXTEEN_MIXES.name, swap_round),
                *(Contender.at_once("taskmix", mixes, each) for each in WORKLOADS),
                *(
                    Contender.at_once(SMALL_SCHEME, small, each)
                    for each in (SIXTEEN_MIXES, HALF_SINGLE)
                ),
            ]
            if cores == STUDIED:
                compiled = up.enter_context(rivals.compiled(models, *where))
                if compiled is not None:
                    contenders.append(Contender.at_once("compiled", compiled, IDLE))
            yield from asyncio.run(in_turns(contenders, cores, self.effort))
            if cores == STUDIED:
                yield asyncio.run(latency(stock, "stock", cores, IDLE.rows, self.effort))
                yield from growing_mixes(mixes, cores, self.effort)

    def many_tasks(self, cores: str) -> Iterator[Measurement]:
        with taskmix(self.models.base, self.models.large_bank, self.folder, cores) as server:
            for loaded in ((), SPARE_TASKS):
                streaming = latency(
                    server, "taskmix", cores, SIXTEEN_MIXES.rows, self.effort, loaded
                )
                yield asyncio.run(streaming)
            yield from growing_tasks(server, cores, self.effort)


@click.command()
@click.option(
    "--cache", type=click.Path(path_type=Path), default=lambda: default_cache() / "models"
)
@click.option("--quick", is_flag=True, help="Few short rounds, to try the scripts: not recorded.")
@click.option(
    "--cores",
    type=click.Choice(tuple(CORES)),
    multiple=True,
    default=tuple(CORES),
    help="Settings of cores to measure under; both unless given.",
)
def main(cache: Path, quick: bool, cores: tuple[str, ...]) -> None:
    """Measure, append to results/serving.jsonl, print, and write docs/performance.md."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave no server behind
    provenance()  # before the first line changes a file
    effort = QUICK if quick else FULL
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for measurement in Bench(prepare(cache), Path(folder), effort, cores).all():
            lines.append(_line(measurement, effort))
            click.echo(measurement, err=True)
            if not quick:
                append(serving_report.RESULTS, lines[-1])
    click.echo(serving_report.tables(lines))
    if not quick:
        serving_report.publish(last_run(serving_report.RESULTS))


def _line(measurement: Measurement, effort: Effort) -> dict[str, object]:
    kind = type(measurement).__name__
    return {"kind": kind, "scheme": SCHEME, "effort": asdict(effort), **asdict(measurement)}


if __name__ == "__main__":
    main()
