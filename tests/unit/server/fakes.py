"""An engine that keeps notes instead of running tokens."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable
from typing import Any

from taskmix_server.domain.generation import Completion, FinishReason, Prompt, SamplingOptions
from taskmix_server.domain.variant import Variant
from taskmix_server.engine.base import DeltaMemory, EngineChunk, EngineLoad, WaitTurn


class FakeEngine:
    """Holds what it is told to hold and fails where a real engine would lose a request.

    Calls of a verb in `blocked` (load, unload, register, forget, memory) wait for `gate`; `seen`
    tells when the first of a verb has come, and by "end" when a request has ended. `failure` is
    raised by loads, by generation and where memory is asked for, `refused` by loads of a task. An
    engine that has died waits for `may_start` to be started again, and fails to with each of
    `start_failures` in turn.
    """

    def __init__(self) -> None:
        self.tasks: set[str] = set()
        self.variants: dict[str, Variant] = {}
        self.log: list[tuple[str, str]] = []
        self.seen: dict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.blocked: set[str] = set()
        self.gate = asyncio.Event()
        self.is_healthy = True
        self.refused: dict[str, Exception] = {}
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.start_failures: list[Exception] = []
        self._death = asyncio.Event()
        self.num_generating = 0
        self.failure: Exception | None = None
        self.num_task_bytes = 100
        self.salts: list[str | None] = []
        self.priorities: list[int] = []
        self.samplings: list[SamplingOptions] = []
        self.asked: list[Variant] = []

    async def load_task(self, name: str, digest: str) -> int:
        await self._note("load", name)
        if name in self.refused:
            raise self.refused[name]
        if self.failure is not None:
            raise self.failure
        self.tasks.add(digest)
        return self.num_task_bytes

    async def unload_task(self, digest: str) -> None:
        await self._note("unload", digest)
        assert not any(digest in variant.entries.values() for variant in self.variants.values())
        self.tasks.discard(digest)

    async def register_variant(self, variant: Variant) -> None:
        await self._note("register", str(variant.mix))
        assert self.tasks.issuperset(variant.entries.values())
        self.variants[variant.digest] = variant

    async def forget_variant(self, variant: Variant) -> None:
        await self._note("forget", str(variant.mix))
        del self.variants[variant.digest]

    async def memory(self) -> DeltaMemory:
        await self._note("memory", "")
        if self.failure is not None:
            raise self.failure
        return DeltaMemory(tasks=100 * len(self.tasks), cache=7, cache_limit=9)

    def lora_request(self, variant: Variant) -> Any:
        return None if variant.is_base else variant.digest

    async def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingOptions,
        variant: Variant,
        turn: WaitTurn,
        cache_salt: str | None,
    ) -> AsyncGenerator[EngineChunk]:
        """Count up to `max_tokens`, `n` times, a token per chunk and answer; every prompt's token
        is as likely."""
        known = (-0.5,) * (len(prompt) - 1) if sampling.prompt_logprobs else ()
        ids = tuple(range(len(prompt)))
        self.samplings.append(sampling)
        self.asked.append(variant)
        self.salts.append(cache_salt)
        self.priorities.append(await turn(len(prompt)))
        self.num_generating += 1
        try:
            for token in range(sampling.max_tokens):
                await asyncio.sleep(0)
                if self.failure is not None:
                    raise self.failure
                is_last = token == sampling.max_tokens - 1
                reason = FinishReason.LENGTH if is_last else None
                pieces = (
                    Completion(index, f"{token} ", (token,), (), reason)
                    for index in range(sampling.n)
                )
                yield EngineChunk(
                    tuple(pieces),
                    len(prompt),
                    2,
                    () if token else known,
                    is_last,
                    prompt_token_ids=ids if is_last else (),
                )
        finally:
            self.num_generating -= 1
            self.seen["end"].set()

    def watch_load(self, observe: Callable[[EngineLoad], None]) -> None:
        observe(EngineLoad(0, 0, 0))

    def die(self) -> None:
        self.is_healthy = False
        self._death.set()

    kill = die

    async def died(self) -> None:
        await self._death.wait()

    async def restart(self) -> None:
        await self._note("restart", "")
        await self.may_start.wait()
        if self.start_failures:
            raise self.start_failures.pop(0)
        self._death.clear()
        self.tasks.clear()
        self.variants.clear()
        self.is_healthy = True

    async def close(self) -> None:
        self.is_healthy = False

    async def _note(self, verb: str, subject: str) -> None:
        self.log.append((verb, subject))
        self.seen[verb].set()
        if verb in self.blocked:
            await self.gate.wait()
