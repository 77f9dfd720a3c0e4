"""Waiting for a condition of another process, with a deadline."""

import time
from collections.abc import Callable
from typing import TypeVar

POLL_S = 0.05
T = TypeVar("T")


def eventually(probe: Callable[[], T], *, within_s: float = 30.0) -> T:
    """Repeat `probe` until what it gives is true, and return that; fail after `within_s`."""
    deadline_s = time.monotonic() + within_s
    while not (seen := probe()):
        assert time.monotonic() < deadline_s, f"not within {within_s} s, last seen: {seen!r}"
        time.sleep(POLL_S)
    return seen
