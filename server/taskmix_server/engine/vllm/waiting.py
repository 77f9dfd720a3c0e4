"""How engine processes wait for each other's messages: hardly at all, or asleep.

For a second after each message, vLLM's processes look for the next one in shared memory without a
pause, yielding in between, so that the scheduler's process keeps a core busy while the worker
computes a step. With few cores that core is wanted. And on Linux 6.18, programs beside a process
that yields all the time were seen to wake up to three seconds late.
"""

import time
from typing import Any

SPIN_S = 0.0003
"""An answer that comes at once is taken at once."""

NAP_SHARE = 0.02
"""Of the time waited so far: what sleeping adds to a step of the model, at most."""


def wait_asleep() -> None:
    """Have this process's readers of shared memory sleep between looks, from now on."""
    from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

    stock_wait, stock_record_read = SpinCondition.wait, SpinCondition.record_read
    if stock_wait.__module__ == __name__:
        return

    def wait(self: Any, timeout_ms: int | None = None) -> None:
        now_s = time.monotonic()
        if now_s > self.last_read + self.busy_loop_s:
            stock_wait(self, timeout_ms)  # which sleeps until it is woken
            return
        if getattr(self, "since_s", None) is None:
            self.since_s = now_s
        waited_s = now_s - self.since_s
        if waited_s > SPIN_S:
            time.sleep(NAP_SHARE * waited_s)

    def record_read(self: Any) -> None:
        self.since_s = None
        stock_record_read(self)

    SpinCondition.wait, SpinCondition.record_read = wait, record_read
