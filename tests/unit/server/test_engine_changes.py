"""How the front has a worker change its tasks and mixes.

A change of tasks is begun at once, then asked after until it is made.
"""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from vllm.v1.engine.exceptions import EngineDeadError

from taskmix_composer.errors import BankFormatError
from taskmix_composer.mix import Mix
from taskmix_server.domain.variant import Variant
from taskmix_server.engine.config import EngineConfig
from taskmix_server.engine.vllm.carriers import is_shadow
from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.engine.vllm.worker import Reply
from taskmix_server.errors import UnavailableError

NOT_YET: Reply = {"value": None}
DAMAGED: Reply = {"error": "BankFormatError", "message": "the stored bytes differ"}


class Worker:
    """Stands for vLLM's client: gives a worker's replies in turn, then dies."""

    def __init__(self, replies: Iterable[Reply]) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.is_waited_for = asyncio.Event()
        self._replies = iter(replies)

    async def collective_rpc(self, verb: str, args: tuple[Any, ...]) -> list[Reply]:
        self.asked.append((verb, *args))
        if verb == "taskmix_finish":
            self.is_waited_for.set()
        for reply in self._replies:
            return [reply]
        raise EngineDeadError


def engine_of(worker: Worker) -> VllmEngine:
    engine = VllmEngine(EngineConfig(Path("base"), Path("bank")))
    engine.client = worker  # type: ignore[assignment]
    return engine


async def test_a_load_is_begun_once_and_asked_after_until_it_is_made() -> None:
    worker = Worker([NOT_YET, NOT_YET, NOT_YET, {"value": 41}])
    assert await engine_of(worker).load_task("a", "digest") == 41
    assert worker.asked == [("taskmix_begin_load", "a", "digest"), *[("taskmix_finish",)] * 3]


async def test_other_calls_have_their_turn_while_a_task_is_loaded() -> None:
    worker = Worker([NOT_YET, NOT_YET, {"value": {}}, {"value": 41}])
    engine = engine_of(worker)
    loading = asyncio.create_task(engine.load_task("a", "digest"))
    await worker.is_waited_for.wait()
    await engine.memory()
    assert await loading == 41


async def test_what_goes_wrong_in_the_worker_is_raised() -> None:
    with pytest.raises(BankFormatError, match="the stored bytes differ"):
        await engine_of(Worker([NOT_YET, NOT_YET, DAMAGED])).load_task("a", "digest")
    with pytest.raises(UnavailableError):
        await engine_of(Worker([NOT_YET, NOT_YET])).load_task("a", "digest")


async def test_a_task_is_unloaded_and_gone_with_a_dead_engine() -> None:
    worker = Worker([NOT_YET, NOT_YET, {"value": 0}])
    await engine_of(worker).unload_task("digest")
    assert worker.asked == [("taskmix_begin_unload", "digest"), *[("taskmix_finish",)] * 2]
    await engine_of(Worker([NOT_YET])).unload_task("digest")


async def test_a_shadow_s_requests_say_so_to_the_worker() -> None:
    engine = engine_of(Worker([{"value": None}]))
    variant = Variant(Mix.parse("a"), "digest", {"a": "content"}, "revision")
    await engine.register_variant(variant)
    plain, shadow = (engine.lora_request(replace(variant, is_shadow=it)) for it in (False, True))
    assert plain is not None
    assert shadow is not None
    assert (is_shadow(plain), is_shadow(shadow)) == (False, True)
    assert plain.lora_path == shadow.lora_path
