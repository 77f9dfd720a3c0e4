"""Changes that are prepared beside the model, and installed between two of its steps.

The thread that prepares them shares cores and Python's lock with the one that runs the model. It
computes on one core, since a team of threads waits for its slowest at every operation, and mostly
in time that the model leaves: at equal priority it would hold up the model's own teams.
"""

import ctypes
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

import torch

from taskmix_server.errors import UnavailableError

NICENESS = 10
"""About a tenth of the model's share of a busy core.

With less (19), a load takes longer, and so does the model where the thread is put off while it has
Python's lock.
"""

THREAD = "taskmix-change"

Install = Callable[[], int]
"""What is left of a change for the thread that runs the model; gives the bytes held then."""
Prepare = Callable[[], Install]
"""Makes a change ready, reading nothing that the model's thread writes."""

T = TypeVar("T")


class Background:
    """One change at a time, begun and finished by the thread that runs the model."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._prepared: Future[Install] | None = None

    def begin(self, prepare: Prepare) -> None:
        """Start to prepare a change. One that was begun before and never finished is given up."""
        self._prepared = Future()
        self._thread = threading.Thread(
            target=_run, args=(prepare, self._prepared, self._thread), name=THREAD
        )
        self._thread.start()

    def finish(self) -> int | None:
        """Install the change, or raise what went wrong; None while it is being prepared."""
        prepared = self._prepared
        if prepared is None:
            raise UnavailableError("the engine was started anew meanwhile; try again")
        if not prepared.done():
            return None
        self._prepared = None
        try:
            return prepared.result()()
        finally:
            del prepared  # or an error would hold this frame, which holds it: nothing could go


def until_exit(items: Iterable[T]) -> Iterator[T]:
    """The items, for as long as the process does not end: it waits for its threads."""
    for item in items:
        if not threading.main_thread().is_alive():
            raise SystemExit
        yield item


def _run(prepare: Prepare, prepared: Future[Install], before: threading.Thread | None) -> None:
    if before is not None:
        before.join()
    try:
        _step_aside()
        prepared.set_result(prepare())
    except BaseException as error:  # noqa: BLE001 - the thread's edge: `finish` raises it
        prepared.set_exception(error)
    finally:
        del prepared  # as in `finish`


def _step_aside() -> None:
    """Have the calling thread leave cores to the model.

    vLLM binds the model's thread to a core, which the threads that it starts inherit, and refuses
    `torch.set_num_threads`, which would not be of this thread alone.
    """
    os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
    torch.get_num_threads()  # at its first call in a thread, torch sets this to all cores
    ctypes.CDLL(torch._C.__file__).omp_set_num_threads(1)
