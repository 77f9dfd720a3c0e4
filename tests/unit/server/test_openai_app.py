"""vLLM's app is made on a client whose engine may be dead, or die meanwhile."""

import asyncio
from argparse import Namespace
from pathlib import Path

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from taskmix_server.engine.config import EngineConfig
from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.errors import UnavailableError
from taskmix_server.rest.openai_app import OpenAiApp


class DyingClient:
    """Stands for vLLM's client: it is asked what its engine can do, and never hears of it."""

    def __init__(self) -> None:
        self.errored = False
        self.is_asked = asyncio.Event()
        self.is_left = asyncio.Event()

    async def get_supported_tasks(self) -> tuple[str, ...]:
        self.is_asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.is_left.set()
        return ()


class DeadClient:
    """One whose engine was dead before."""

    errored = True

    async def get_supported_tasks(self) -> tuple[str, ...]:
        raise EngineDeadError


def app_on(client: object) -> OpenAiApp:
    engine = VllmEngine(EngineConfig(Path("base"), Path("bank")))
    engine.arguments, engine.client = Namespace(), client  # type: ignore[assignment]
    return OpenAiApp(engine)


async def test_an_engine_that_dies_without_an_answer() -> None:
    client = DyingClient()
    binding = asyncio.create_task(app_on(client).bind())
    await client.is_asked.wait()
    client.errored = True
    with pytest.raises(UnavailableError, match="the engine stopped"):
        await binding
    await client.is_left.wait()


async def test_an_engine_that_is_dead_already() -> None:
    with pytest.raises(UnavailableError, match="the engine stopped"):
        await app_on(DeadClient()).bind()


async def test_a_caller_that_leaves_takes_its_question_along() -> None:
    client = DyingClient()
    binding = asyncio.create_task(app_on(client).bind())
    await client.is_asked.wait()
    binding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await binding
    await client.is_left.wait()
