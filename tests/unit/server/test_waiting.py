"""Readers of vLLM's shared memory over a real queue: what they get, and what waiting costs."""

import threading
import time
from collections.abc import Iterator

import pytest
from vllm.distributed.device_communicators.shm_broadcast import MessageQueue, SpinCondition

from taskmix_server.engine.vllm.waiting import NAP_SHARE, wait_asleep

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


def test_waiting_takes_no_processor_and_messages_come_in_time(
    queue: tuple[MessageQueue, MessageQueue],
) -> None:
    writer, reader = queue
    late_s: list[float] = []

    def write() -> None:
        for _ in range(NUM_MESSAGES):
            time.sleep(GAP_S)
            writer.enqueue(time.monotonic())

    writing = threading.Thread(target=write)
    writing.start()
    busy_s = time.thread_time()
    for _ in range(NUM_MESSAGES):
        sent_s = reader.dequeue(timeout=10)
        late_s.append(time.monotonic() - sent_s)
    busy_s = time.thread_time() - busy_s
    writing.join()
    assert busy_s < NUM_MESSAGES * GAP_S / 4
    assert min(late_s) < 2 * NAP_SHARE * GAP_S
