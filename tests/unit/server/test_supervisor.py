"""An engine that dies is started again with what it held, a bounded number of times."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from taskmix_composer.errors import CheckpointError
from taskmix_composer.mix import Mix
from taskmix_server.errors import FailedPreconditionError, NotFoundError, UnavailableError
from taskmix_server.runtime.state import ServerState
from taskmix_server.runtime.statuses import TaskState
from taskmix_server.runtime.supervisor import EngineSupervisor
from taskmix_server.telemetry.outcomes import FAILED, OK
from tests.unit.server.conftest import Parts

WAITS_S = (0.0, 0.0, 0.0)


class Watch:
    """A supervisor, what it says of each try, and a restore whose failures a test chooses."""

    def __init__(self, parts: Parts) -> None:
        self.state = ServerState()
        self._outcomes: asyncio.Queue[str] = asyncio.Queue()
        self.failures: list[Exception] = []
        self.seen_restoring: list[bool] = []
        restores = (parts.variants.forget_all, parts.tasks.restore, self._last)
        self._supervisor = EngineSupervisor(
            parts.engine, self.state, restores, self._outcomes.put_nowait, waits_s=WAITS_S
        )
        self.task = asyncio.create_task(self._supervisor.run())

    async def outcome(self) -> str:
        """Of the next try to start the engine; fails with what has ended the supervisor."""
        told = asyncio.create_task(self._outcomes.get())
        await asyncio.wait({told, self.task}, return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            told.cancel()
            await self.task
        return await told

    async def _last(self) -> None:
        self.seen_restoring.append(self.state.is_restoring)
        if self.failures:
            raise self.failures.pop()


@asynccontextmanager
async def watching(parts: Parts) -> AsyncIterator[Watch]:
    watch = Watch(parts)
    try:
        yield watch
    finally:
        watch.task.cancel()
        with suppress(asyncio.CancelledError, UnavailableError):
            await watch.task


async def test_tasks_and_mixes_come_back(parts: Parts) -> None:
    mix = Mix.parse("head:0.5+body")
    async with parts.variants.lease(mix):
        pass
    async with watching(parts) as watch:
        parts.engine.die()
        assert await watch.outcome() == OK
        assert watch.seen_restoring == [True]
        assert not watch.state.is_restoring
    assert parts.engine.is_healthy
    assert parts.engine.tasks == {parts.tasks.status(name).digest for name in ("head", "body")}
    assert len(parts.variants) == 0, "the new engine knows no variant"
    async with parts.variants.lease(mix) as variant:
        assert variant.digest in parts.engine.variants


async def test_a_request_that_outlives_the_engine(parts: Parts) -> None:
    """What it holds is counted off after the restart, and not taken from others."""
    mix = Mix.parse("head")
    async with watching(parts) as watch:
        async with parts.variants.lease(mix):
            parts.engine.die()
            assert await watch.outcome() == OK
            async with parts.variants.lease(mix):
                assert parts.tasks.num_references == 2
        assert parts.tasks.num_references == 0
    assert parts.tasks.status("head").state is TaskState.RESIDENT


async def test_content_that_is_gone_is_given_up(
    parts: Parts, caplog: pytest.LogCaptureFixture
) -> None:
    parts.engine.refused["head"] = FailedPreconditionError("changed in the bank")
    async with watching(parts) as watch:
        parts.engine.die()
        assert await watch.outcome() == OK
    assert parts.tasks.status("head").state is TaskState.ON_DISK
    assert parts.tasks.status("body").state is TaskState.RESIDENT
    with pytest.raises(NotFoundError):
        parts.tasks.digests(Mix.parse("head"))
    assert "task head is not served any more: changed in the bank" in caplog.text


FAILURES = (
    UnavailableError("vLLM did not start"),
    FailedPreconditionError("vLLM cannot serve the base so"),
    CheckpointError("config.json is missing"),
    OSError("the directory is away"),
    RuntimeError("vLLM's own"),
)


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
async def test_an_engine_that_does_not_start_at_once(parts: Parts, failure: Exception) -> None:
    """A base's directory that is away for a moment takes one of the tries, and not the server."""
    async with watching(parts) as watch:
        parts.engine.start_failures.append(failure)
        parts.engine.die()
        assert [await watch.outcome(), await watch.outcome()] == [FAILED, OK]
        assert not watch.state.is_restoring
    assert parts.engine.is_healthy


@pytest.mark.parametrize("failure", FAILURES, ids=repr)
async def test_an_engine_that_dies_while_it_is_restored(parts: Parts, failure: Exception) -> None:
    async with watching(parts) as watch:
        watch.failures.append(failure)
        parts.engine.die()
        assert [await watch.outcome(), await watch.outcome()] == [FAILED, OK]
        assert watch.seen_restoring == [True, True]
        assert not watch.state.is_restoring


async def test_an_engine_that_never_starts(parts: Parts) -> None:
    async with watching(parts) as watch:
        parts.engine.start_failures.extend(OSError("the directory is away") for _ in WAITS_S)
        parts.engine.die()
        assert [await watch.outcome() for _ in WAITS_S] == [FAILED] * len(WAITS_S)
        with pytest.raises(UnavailableError, match="started 3 times in 600 s"):
            await watch.task


async def test_an_engine_that_does_not_stay(parts: Parts) -> None:
    async with watching(parts) as watch:
        for _ in WAITS_S:
            parts.engine.die()
            assert await watch.outcome() == OK
        parts.engine.die()
        with pytest.raises(UnavailableError, match="started 3 times in 600 s"):
            await watch.task
        assert watch.state.is_restoring, "it takes no requests while it ends"


async def test_unloading_from_a_dead_engine(parts: Parts) -> None:
    """What was unloaded while the engine was down does not come back."""
    async with watching(parts) as watch:
        parts.engine.may_start.clear()
        parts.engine.die()
        await parts.engine.seen["restart"].wait()
        await parts.tasks.unload("head")
        parts.engine.may_start.set()
        assert await watch.outcome() == OK
    assert parts.engine.tasks == {parts.tasks.status("body").digest}
