"""Readers of vLLM's shared memory over a real queue: what they get, and what waiting costs."""

import threading
import time
from collections.abc import Iterator

import pytest
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition

from taskmix_server.engine.vllm.waiting import RECHECK_SHARE, wait_asleep

NUM_MESSAGES = 5
GAP_S = 0.1


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[MessageQueue, MessageQueue]]:
    """The ends of a queue, whose reader sleeps."""
    for name in ("wait", "record_read"):  # to have vLLM's own back afterwards
        monkeypatch.setattr(SpinCondition, name, getattr(SpinCondition, name))
    wait_asleep()
    wait_asleep()  # as vLLM loads its plugins more than once
    writer = MessageQueue(n_reader=1, n_local_reader=1)
    reader = MessageQueue.create_from_handle(writer.export_handle(), 0)
    ready = threading.Thread(target=writer.wait_until_ready)
    ready.start()
    reader.wait_until_ready()
    ready.join()
    yield writer, reader
    reader.shutdown()


def lateness_s(queue: tuple[MessageQueue, MessageQueue]) -> list[float]:
    """How late messages were read that came one after another, with a gap before each."""
    writer, reader = queue

    def write() -> None:
        for _ in range(NUM_MESSAGES):
            time.sleep(GAP_S)
            writer.enqueue(time.monotonic())

    writing = threading.Thread(target=write)
    writing.start()
    late_s = [time.monotonic() - reader.dequeue(timeout=10) for _ in range(NUM_MESSAGES)]
    writing.join()
    return late_s


def test_waiting_takes_no_processor_and_a_message_wakes(
    queue: tuple[MessageQueue, MessageQueue],
) -> None:
    busy_s = time.thread_time()
    late_s = lateness_s(queue)
    busy_s = time.thread_time() - busy_s
    assert busy_s < NUM_MESSAGES * GAP_S / 4
    assert min(late_s) < RECHECK_SHARE * GAP_S / 4, "a notification did not wake the reader"


def test_a_message_whose_notification_is_lost_is_found_soon(
    queue: tuple[MessageQueue, MessageQueue], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpinCondition, "notify", lambda _: None)
    assert min(lateness_s(queue)) < 2 * RECHECK_SHARE * GAP_S
