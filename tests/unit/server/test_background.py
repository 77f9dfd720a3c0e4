"""Changes that are prepared beside the model: in turn, out of its way, installed when asked."""

import ctypes
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch

from taskmix_server.engine.vllm.background import NICENESS, THREAD, Background, Install
from taskmix_server.errors import FailedPreconditionError, UnavailableError

LIMIT_S = 20.0
T = TypeVar("T")


@pytest.fixture
def background() -> Background:
    return Background()


def finished(background: Background) -> int:
    """Wait for the change as the thread that runs the model does."""
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(LIMIT_S)
    num_bytes = background.finish()
    assert num_bytes is not None, f"not ready within {LIMIT_S} s"
    return num_bytes


class Gate:
    """A change that stays under way until `opened`."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.began = threading.Event()
        self.opened = threading.Event()
        self.installed_by: list[threading.Thread] = []

    def __call__(self) -> Install:
        self.began.set()
        assert self.opened.wait(LIMIT_S)
        return self._install

    def _install(self) -> int:
        self.installed_by.append(threading.current_thread())
        return self.num_bytes


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate(7)
    yield gate
    gate.opened.set()


def test_a_change_is_installed_by_who_finishes_it(background: Background, gate: Gate) -> None:
    background.begin(gate)
    assert gate.began.wait(LIMIT_S)
    assert background.finish() is None
    gate.opened.set()
    assert finished(background) == 7
    assert gate.installed_by == [threading.current_thread()]


def test_a_change_waits_for_one_that_was_given_up(background: Background, gate: Gate) -> None:
    background.begin(gate)
    assert gate.began.wait(LIMIT_S)
    second = Gate(8)
    second.opened.set()
    background.begin(second)
    assert background.finish() is None
    assert not second.began.is_set()
    gate.opened.set()
    assert finished(background) == 8
    assert gate.installed_by == []


def test_what_goes_wrong_is_raised_where_the_change_is_finished(background: Background) -> None:
    def prepare() -> Install:
        raise FailedPreconditionError("changed meanwhile")

    background.begin(prepare)
    with pytest.raises(FailedPreconditionError, match="changed meanwhile"):
        finished(background)
    with pytest.raises(UnavailableError, match="started anew"):
        background.finish()


def test_what_was_read_goes_with_the_error(background: Background) -> None:
    seen: list[weakref.ref[torch.Tensor]] = []

    def prepare() -> Install:
        read = torch.zeros(3)
        seen.append(weakref.ref(read))
        raise FailedPreconditionError(str(read))

    gc.disable()
    try:
        background.begin(prepare)
        with pytest.raises(FailedPreconditionError):
            finished(background)
        assert seen[0]() is None, "an error's frames hold it"
    finally:
        gc.enable()


def within(background: Background, ask: Callable[[], T]) -> T:
    """What `ask` gives while a change is prepared."""
    found: list[T] = []

    def prepare() -> Install:
        found.append(ask())
        return lambda: 0

    background.begin(prepare)
    finished(background)
    return found[0]


def test_changes_are_prepared_on_one_core_and_the_model_keeps_its_own(
    background: Background,
) -> None:
    openmp = ctypes.CDLL(torch._C.__file__)  # vLLM, if a test has run it here, guards torch's own
    num_threads = torch.get_num_threads()
    openmp.omp_set_num_threads(3)
    try:
        assert within(background, torch.get_num_threads) == 1
        assert torch.get_num_threads() == 3
    finally:
        openmp.omp_set_num_threads(num_threads)


def test_changes_take_what_the_model_leaves(background: Background) -> None:
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    ask = threading.get_native_id
    assert within(background, lambda: os.getpriority(os.PRIO_PROCESS, ask())) == NICENESS
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine


def test_changes_may_run_on_every_core(background: Background) -> None:
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mine)})
    try:
        allowed = within(background, lambda: os.sched_getaffinity(0))
        assert allowed == os.sched_getaffinity(os.getppid())
        assert os.sched_getaffinity(0) == {min(mine)}
    finally:
        os.sched_setaffinity(0, mine)
