"""How long a connection waits for a reader, on a loop that only keeps what is to be called."""

from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from taskmix_server.rest.connection import READER_S, BoundedConnection


class Alarm:
    """What `call_later` returns."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """Keeps alarms, and calls none."""

    def __init__(self) -> None:
        self.alarms: list[Alarm] = []

    def call_later(self, delay_s: float, callback: object) -> Alarm:
        self.alarms.append(Alarm(delay_s))
        return self.alarms[-1]

    @property
    def num_for_readers(self) -> int:
        """Alarms that would drop the connection of a reader."""
        return sum(alarm.delay_s == READER_S and not alarm.is_cancelled for alarm in self.alarms)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def connection(loop: Loop) -> BoundedConnection:
    config = uvicorn.Config(answered, lifespan="off", log_config=None)
    fake: Any = loop
    made = BoundedConnection(config, ServerState(), {}, fake)
    made.connection_made(transport())
    return made


async def answered(scope: Any, receive: Any, send: Any) -> None:
    """An app that is not called."""


def transport(*, is_closing: bool = False) -> Any:
    return SimpleNamespace(
        get_extra_info=lambda name: None,
        is_closing=lambda: is_closing,
        pause_reading=lambda: None,
        resume_reading=lambda: None,
        close=lambda: None,
    )


def test_a_reader_who_reads_again_is_not_dropped(connection: BoundedConnection, loop: Loop) -> None:
    connection.pause_writing()
    assert loop.num_for_readers == 1
    connection.resume_writing()
    assert loop.num_for_readers == 0


def test_one_alarm_at_a_time(connection: BoundedConnection, loop: Loop) -> None:
    """An answer whose reader lags ends, and the connection is to be closed when it is read."""
    connection.pause_writing()
    first = loop.alarms[-1]
    connection.transport = transport(is_closing=True)
    connection.on_response_complete()
    assert first.is_cancelled
    assert loop.num_for_readers == 1
    second = loop.alarms[-1]
    connection.resume_writing()
    assert second.is_cancelled
    assert loop.num_for_readers == 1  # what is left has as long again
    connection.connection_lost(None)
    assert loop.num_for_readers == 0
