"""An engine that hangs is ended; one that is slow, or dead already, is left alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from taskmix_server.errors import UnavailableError
from taskmix_server.runtime.liveness import Liveness
from tests.unit.server.fakes import FakeEngine

TIMEOUT_S = 0.2
WITHIN_S = 20.0


@asynccontextmanager
async def watched(engine: FakeEngine) -> AsyncIterator[None]:
    running = asyncio.create_task(Liveness(engine, TIMEOUT_S, poll_s=0.01).run())
    yield
    assert not running.done()
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running


async def test_an_engine_that_gives_no_answer(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    engine.blocked.add("memory")
    async with watched(engine):
        await asyncio.wait_for(engine.died(), WITHIN_S)
    assert "has given no answer" in caplog.text


async def test_an_engine_that_answers_late() -> None:
    engine = FakeEngine()
    engine.blocked.add("memory")
    async with watched(engine):
        await engine.seen["memory"].wait()
        engine.gate.set()
        await asyncio.sleep(2 * TIMEOUT_S)
    assert engine.is_healthy
    assert len(engine.log) > 1, "it goes on asking"


async def test_an_engine_that_is_started_again() -> None:
    """It was dead, says so as often as it is asked, and is well again afterwards."""
    engine = FakeEngine()
    engine.failure = UnavailableError("the engine stopped and is started again")
    async with watched(engine):
        await engine.seen["memory"].wait()
        engine.failure = None
        await asyncio.sleep(TIMEOUT_S)
    assert engine.is_healthy
