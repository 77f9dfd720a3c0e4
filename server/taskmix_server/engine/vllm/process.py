"""The engine's process: out of the terminal's signal group, and never outliving its parent."""

import multiprocessing
import os
import signal
import threading
import time

PARENT_POLL_S = 1.0
_MARK = "TASKMIX_ENGINE_CHILDREN"  # children inherit the environment, and vLLM starts them for us


def mark_engine_children() -> None:
    """Have the engine processes that this process starts guard themselves."""
    os.environ[_MARK] = "1"


def guard_engine_process() -> None:
    """Called by vLLM's plugin loader in every process; acts in the children that taskmix started.

    A signal to the terminal's process group (Ctrl-C, a service manager) must reach only the
    front, which drains; and a front that was killed must not leave its engine behind.
    """
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None or _MARK not in os.environ:
        return
    if os.getpgid(0) != os.getpid():
        os.setpgid(0, 0)
    watcher = threading.Thread(target=_exit_with, args=(parent.pid,), daemon=True)
    watcher.start()


def end_children() -> None:
    """Kill the engine processes that this process started."""
    for child in multiprocessing.active_children():
        child.kill()


def _exit_with(parent_id: int) -> None:
    while os.getppid() == parent_id:
        time.sleep(PARENT_POLL_S)
    os.kill(os.getpid(), signal.SIGKILL)
