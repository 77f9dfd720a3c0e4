"""Waiting for a condition of another process, with a deadline; whether a process is gone."""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import psutil

POLL_S = 0.05
T = TypeVar("T")


def eventually(
    probe: Callable[[], T], *, until: Callable[[T], object] = bool, within_s: float = 30.0
) -> T:
    """Repeat `probe` until what it gives is as it should be, and return that.

    Fails after `within_s`, and says what was seen last.
    """
    deadline_s = time.monotonic() + within_s
    while not until(seen := probe()):
        assert time.monotonic() < deadline_s, f"not within {within_s} s, last seen: {seen!r}"
        time.sleep(POLL_S)
    return seen


def all_gone(processes: Iterable[psutil.Process]) -> bool:
    """Whether none of them runs. An orphan may stay a zombie: not every init process reaps."""
    return not any(map(_runs, processes))


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
