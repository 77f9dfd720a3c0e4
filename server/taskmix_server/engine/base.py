"""What the server needs of an engine."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from taskmix_server.domain.generation import Completion, Prompt, SamplingOptions
from taskmix_server.domain.variant import Variant
from taskmix_server.telemetry.requests import Phases


@dataclass(frozen=True, slots=True)
class EngineChunk:
    """New tokens of one request. Counts are totals so far; finished on its last chunk, which may
    say when the engine worked on it, and which tokens the prompt had."""

    completions: tuple[Completion, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    prompt_logprobs: tuple[float, ...]
    is_finished: bool
    phases: Phases | None = None
    prompt_token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is after a step.

    used_kv_blocks: blocks that requests in flight hold. finished: the id of its request for each
    answer that ended with the step.
    """

    num_running: int
    num_waiting: int
    used_kv_blocks: int
    finished: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DeltaMemory:
    """Bytes that deltas take in the engine.

    tasks, shared, planes: of coded deltas, of the vectors that they are coded over, and of masks.
    cache: of dense forms made of them and of merged weights, out of `cache_limit`; `cache_hits` and
    `cache_misses` count how often a dense form was there or was made for a step, `merges` how often
    a mix that had whole batches to itself was merged, and `steps_*` the steps in which a batch was
    the base's alone, had merged weights, or had deltas added. slots: of the tables that Triton's
    kernels read, used or not.
    """

    tasks: int = 0
    shared: int = 0
    planes: int = 0
    cache: int = 0
    cache_limit: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    merges: int = 0
    steps_base: int = 0
    steps_merged: int = 0
    steps_added: int = 0
    slots: int = 0


WaitTurn = Callable[[int], Awaitable[int]]
"""Told how many tokens a prompt has, waits until it may run; its priority, lower first."""


class Engine(Protocol):
    """Runs tokens under registered variants. Tasks are named by content digest."""

    async def load_task(self, name: str, digest: str) -> int:
        """Hold a task's coded deltas; returns their bytes, without those of a vector that it
        shares with others. Repeating it is harmless."""

    async def unload_task(self, digest: str) -> None:
        """Let a task's deltas go, which is done where the engine has died. No registered variant
        may name it."""

    async def register_variant(self, variant: Variant) -> None:
        """Make a variant servable; its tasks are loaded. Repeating it is harmless."""

    async def forget_variant(self, variant: Variant) -> None:
        """Drop a variant that no request in flight uses; done where the engine has died."""

    async def memory(self) -> DeltaMemory:
        """What deltas take in the engine now."""

    def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingOptions,
        variant: Variant,
        turn: WaitTurn,
        cache_salt: str | None,
    ) -> AsyncGenerator[EngineChunk]:
        """Run a request; closing the iterator stops its work.

        Keys and values are reused between requests of one `cache_salt` only.
        """

    def watch_load(self, observe: Callable[[EngineLoad], None]) -> None:
        """Call `observe` after each step of the engine."""

    @property
    def is_healthy(self) -> bool:
        """False once the engine has died, until it was started again."""

    async def died(self) -> None:
        """Return once the engine has died. Requests and calls under way end by themselves."""

    def kill(self) -> None:
        """End an engine that does not answer: it has died then."""

    async def restart(self) -> None:
        """Start an engine that has died again: it holds no task and knows no variant.

        Raises UnavailableError if it does not start.
        """

    async def close(self) -> None:
        """End the engine's processes."""
