"""What more tasks and more mixes cost: tokens per second and memory, stage by stage."""

import asyncio
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.models import MANY_TASKS
from benchmarks.rounds import Effort, rates
from benchmarks.servers import Running
from benchmarks.workloads import NUM_ROWS, TASKS, over_tasks
from taskmix_client import Client

TASK_STAGES = (32, 16, 8, 4, 2, 1)
NUM_NAMED = 16
"""Mixes that a round's rows name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Resident bytes: what the server counts of its tasks, and of its processes.

    `front_bytes` are of the process at the edges, `engine_bytes` of those behind it.
    """

    tasks_bytes: float
    front_bytes: int
    engine_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStage:
    """A batch whose rows use every one of `num_tasks` loaded tasks."""

    cores: str
    num_tasks: int
    tokens_per_s: Mapping[str, float]
    memory: Memory


@dataclass(frozen=True, slots=True, kw_only=True)
class MixStage:
    """A batch over sixteen of `num_mixes` registered mixes.

    `registered_per_s` is the pace of the last ones to be registered, one call after the other.
    """

    cores: str
    num_mixes: int
    registered_per_s: float
    tokens_per_s: Mapping[str, float]
    memory: Memory


def growing_tasks(server: Running, cores: str, effort: Effort) -> Iterator[TaskStage]:
    """From a server with all tasks loaded, unload the last ones stage by stage."""
    num_loaded = len(MANY_TASKS)
    for num_tasks in TASK_STAGES:
        with Client(server.grpc) as client:
            for name in MANY_TASKS[num_tasks:num_loaded]:
                client.unload_task(name)
        num_loaded = num_tasks
        yield TaskStage(
            cores=cores,
            num_tasks=num_tasks,
            tokens_per_s=_rates(server, over_tasks(num_tasks).rows, effort),
            memory=memory(server),
        )


def growing_mixes(server: Running, cores: str, effort: Effort) -> Iterator[MixStage]:
    """Register mixes of two tasks, and at each stage name sixteen out of all."""
    num_registered = 0
    for num_mixes in effort.num_mixes:
        started_s = time.monotonic()
        with Client(server.grpc) as client:
            for index in range(num_registered, num_mixes):
                client.register_mix(f"mix{index}", pair(index))
        elapsed_s = time.monotonic() - started_s
        pace = (num_mixes - num_registered) / elapsed_s
        num_registered = num_mixes
        named = [f"mix{index}" for index in spaced(num_mixes, NUM_NAMED)]
        yield MixStage(
            cores=cores,
            num_mixes=num_mixes,
            registered_per_s=pace,
            tokens_per_s=_rates(server, named * (NUM_ROWS // NUM_NAMED), effort),
            memory=memory(server),
        )


def pair(index: int) -> dict[str, float]:
    """The mix of a number: two of the eight tasks, with coefficients that no other number has."""
    share = (index + 1) / 2**16
    return {TASKS[index % 8]: 1.0 - share, TASKS[(index + 1 + index // 8 % 7) % 8]: share}


def spaced(count: int, num_chosen: int) -> list[int]:
    """Numbers below `count`, evenly spaced, the last one among them."""
    return [(index + 1) * count // num_chosen - 1 for index in range(num_chosen)]


def memory(server: Running) -> Memory:
    """What the server's processes hold now."""
    front = psutil.Process(server.pid)
    behind = [child.memory_info().rss for child in front.children(recursive=True)]
    return Memory(
        tasks_bytes=_gauge(server, "taskmix_resident_bytes"),
        front_bytes=front.memory_info().rss,
        engine_bytes=sum(behind),
    )


def _gauge(server: Running, name: str) -> float:
    with urllib.request.urlopen(f"http://{server.http}/metrics") as response:
        families = text_string_to_metric_families(response.read().decode())
        (sample,) = (one for family in families if family.name == name for one in family.samples)
    return sample.value


def _rates(server: Running, rows: Sequence[str], effort: Effort) -> dict[str, float]:
    return asyncio.run(rates(server, rows, effort.num_growth_rounds, effort.answer_tokens))
