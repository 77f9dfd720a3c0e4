"""Mixed traffic for a long time, and whether the server grows under it.

Traffic comes in rounds. Between two of them all callers are gone, and the server is looked at: what
it holds then it has kept. The first third of the rounds warms it up.
"""

import asyncio
import gc
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from benchmarks.record import append, provenance
from benchmarks.usage import HELD, READY, Sample, held_by, num_callers, processes_of, slope
from taskmix_server.app import MAX_THREADS
from tests.support.guarded import Guarded, guarding
from tests.support.models import make_models
from tests.support.served import samples as metrics_in
from tests.support.traffic import drive, is_fault, prepare
from tests.support.waiting import eventually

ROUND_S = 20.0
MAX_GROWTH_BYTES = 8 * 2**20
"""Of one process over all that was measured."""


POOLS = {("front", "num_threads"): MAX_THREADS}
"""What may be added at any time: a pool makes another thread when all that it has are taken."""

SETTLED_S = 60.0
FLAGS = ("--delta-cache-memory", str(16 * 2**20))
"""A cache that is soon full."""

ENVIRONMENT = (
    *("MALLOC_ARENA_MAX=1", "MALLOC_MMAP_THRESHOLD_=65536", "MALLOC_TRIM_THRESHOLD_=65536"),
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY=16",
)
"""Makes the C library give memory back when it is freed, and oneDNN keep few kernels. As they come,
the one keeps the largest that each thread has ever used, the other code for 1024 shapes: a process
seems to grow until it has met them all."""


@dataclass(frozen=True, slots=True)
class Soak:
    """Samples between rounds after the warm-up, and how often each act of the traffic ended how."""

    samples: Sequence[Sample]
    outcomes: Mapping[str, int]

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(self.samples[0].processes)

    def growth_bytes(self, role: str) -> float:
        """What a process has gained since the warm-up, by the slope of all samples."""
        at_s = [seen.at_s for seen in self.samples]
        held = [seen.processes[role].pss_bytes for seen in self.samples]
        return slope(at_s, held) * (at_s[-1] - at_s[0])

    def problems(self) -> list[str]:
        """What has grown, or was left behind, or failed; empty if all is well."""
        return [*self._grown(), *self._left(), *self._failed()]

    def _grown(self) -> Iterator[str]:
        """What leaks still grows at the end; pools fill up in time."""
        for role in self.roles:
            growth = self.growth_bytes(role)
            if growth > MAX_GROWTH_BYTES:
                yield f"{role} has grown by {growth / 2**20:.1f} MiB"
            for count in ("num_fds", "num_threads"):
                seen = [getattr(found.processes[role], count) for found in self.samples]
                late = len(seen) - len(seen) // 3
                room = POOLS.get((role, count), 0)
                if max(seen[late:]) > max(seen[:late]) and max(seen) > min(seen) + room:
                    yield f"{count} of {role} between rounds, still growing: {seen}"

    def _left(self) -> Iterator[str]:
        for seen in self.samples:
            left = {name: seen.gauges[name] for name in HELD if seen.gauges[name]}
            if left:
                yield f"after {seen.at_s:.0f} s nobody asks, and there are {left}"
        ready = [seen.gauges[READY] for seen in self.samples]
        if len(set(ready)) > 1:
            yield f"{READY} between rounds: {ready}"

    def _failed(self) -> Iterator[str]:
        for outcome, count in self.outcomes.items():
            if is_fault(outcome):
                yield f"{outcome}, {count} times"


def soak(guarded: Guarded, num_rounds: int, round_s: float) -> Soak:
    """Let traffic at a server, in so many rounds."""
    prepare(guarded)
    processes = processes_of(guarded.served.process.pid)
    started_s = time.monotonic()
    outcomes: Counter[str] = Counter()
    samples = []
    for number in range(num_rounds):
        outcomes += asyncio.run(drive(guarded, round_s, number))
        gc.collect()  # calls that were left hold connections of the closed clients until then
        gauges = eventually(lambda: gauges_of(guarded), until=is_idle, within_s=SETTLED_S)
        eventually(lambda: not num_callers(processes["front"], ports(guarded)), within_s=SETTLED_S)
        samples.append(Sample(time.monotonic() - started_s, held_by(processes), gauges))
    return Soak(samples[num_rounds // 3 :], dict(outcomes))


def gauges_of(guarded: Guarded) -> Mapping[str, float]:
    """What the server says that it holds."""
    with guarded.http("ops") as http:
        seen = metrics_in(http.get("/metrics").text)
    return {name: seen[name] for name in (*HELD, READY)}


def is_idle(gauges: Mapping[str, float]) -> bool:
    return not any(gauges[name] for name in HELD)


def ports(guarded: Guarded) -> set[int]:
    """Those of both edges."""
    return {int(address.rpartition(":")[2]) for address in (guarded.served.grpc, guarded.url)}


def table(found: Soak) -> str:
    """What the processes held at the start and at the end of what was measured, and the traffic."""
    first, last = found.samples[0], found.samples[-1]
    lines = ["process     PSS MiB   growth MiB   descriptors      threads"]
    for role in found.roles:
        before, after = first.processes[role], last.processes[role]
        lines.append(
            f"{role:8} {after.pss_bytes / 2**20:10.1f} {found.growth_bytes(role) / 2**20:12.2f}"
            f" {before.num_fds:6} -> {after.num_fds} {before.num_threads:6} -> {after.num_threads}"
        )
    lines += [f"{count:8}  {outcome}" for outcome, count in sorted(found.outcomes.items())]
    return "\n".join(lines)


@click.command()
@click.option("--minutes", type=click.FloatRange(1), default=20.0, show_default=True)
@click.option("--round-s", type=click.FloatRange(1), default=ROUND_S, show_default=True)
def main(minutes: float, round_s: float) -> None:
    """Soak a tiny server, print a table, and append to results/soak.jsonl; fail if it has grown."""
    provenance()  # before the first line changes a file
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        with guarding(
            make_models(directory), directory, *FLAGS, environment=ENVIRONMENT
        ) as guarded:
            try:
                found = soak(guarded, round(60 * minutes / round_s), round_s)
            except BaseException:  # the log goes with the folder
                click.echo(guarded.served.log.read_text()[-20_000:], err=True)
                raise
    problems = found.problems()
    append("soak", {"minutes": minutes, **asdict(found), "problems": problems})
    click.echo(table(found))
    if problems:
        raise click.ClickException("\n".join(problems))


if __name__ == "__main__":
    main()
