"""What a server's processes hold, sampled over time, and whether it grows."""

import itertools
import statistics
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

HELD = (
    "taskmix_requests_running",
    "taskmix_requests_waiting",
    "taskmix_task_references",
    "taskmix_kv_blocks_used",
)
"""Gauges that are zero when nobody asks for anything."""

READY = "taskmix_ready_variants"


@dataclass(frozen=True, slots=True)
class Held:
    """What one process holds: its proportional share of memory in bytes, and counts."""

    pss_bytes: int
    num_fds: int
    num_threads: int


@dataclass(frozen=True, slots=True)
class Sample:
    """A moment, in seconds since the start: each process by its role, and gauges by name."""

    at_s: float
    processes: Mapping[str, Held]
    gauges: Mapping[str, float]


def processes_of(pid: int) -> Mapping[str, psutil.Process]:
    """The processes of a server by role: `front` and `engine`."""
    front = psutil.Process(pid)
    (engine,) = (child for child in front.children() if "EngineCore" in " ".join(child.cmdline()))
    return {"front": front, "engine": engine}


def num_callers(front: psutil.Process, ports: Container[int]) -> int:
    """Connections to these ports that the server has not closed."""
    connections = front.net_connections("tcp")
    return sum(one.status != "LISTEN" and one.laddr.port in ports for one in connections)


def held_by(processes: Mapping[str, psutil.Process]) -> Mapping[str, Held]:
    """What each process holds now."""
    return {role: _held(process) for role, process in processes.items()}


def _held(process: Any) -> Held:
    with process.oneshot():
        pss_bytes = process.memory_full_info().pss
        return Held(pss_bytes, process.num_fds(), process.num_threads())


def slope(at_s: Sequence[float], values: Sequence[float]) -> float:
    """Growth per second: the median over all pairs of their slopes (Theil 1950, Sen 1968).

    Up to 29% of the values may be anything, such as memory that was freed a moment late.
    """
    pairs = itertools.combinations(zip(at_s, values, strict=True), 2)
    return statistics.median(
        (later - early) / (end - start) for (start, early), (end, later) in pairs
    )
