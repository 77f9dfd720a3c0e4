"""How engine processes wait for each other's messages: asleep, until they are woken.

For a second after each message, vLLM's processes look for the next one in shared memory without a
pause, yielding in between, so that the scheduler's process keeps a core busy while the worker
computes a step. With few cores that core is wanted. And on Linux 6.18, programs beside a process
that yields all the time were seen to wake up to three seconds late.

vLLM's own sleep, which it falls into after that second, ends with a notification by the writer.
Some of those are lost; vLLM looks again after five seconds, which is long between two steps.
"""

import time
from typing import Any

SPIN_S = 0.0003
"""An answer that comes at once is taken at once."""

RECHECK_SHARE = 0.1
"""Of the time waited so far: when to look again, should no notification come, but at least 1 ms."""


def wait_asleep() -> None:
    """Have this process's readers of shared memory sleep until a message comes, from now on."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    stock_wait, stock_record_read = SpinCondition.wait, SpinCondition.record_read
    if stock_wait.__module__ == __name__:
        return

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        now_s = time.monotonic()
        if getattr(self, "since_s", None) is None:
            self.since_s = now_s
        waited_s = now_s - self.since_s
        if waited_s < SPIN_S:
            return
        self.busy_loop_s = -1.0  # a second otherwise, for which vLLM's own does not sleep
        recheck_ms = max(1, round(1e3 * RECHECK_SHARE * waited_s))
        stock_wait(self, recheck_ms if timeout_ms is None else min(timeout_ms, recheck_ms))

    def record_read(self: Any) -> None:
        self.since_s = None
        stock_record_read(self)

    SpinCondition.wait, SpinCondition.record_read = wait, record_read
