"""What the server needs of an engine."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Protocol

from taskmix_server.domain.generation import Completion, Prompt, SamplingOptions
from taskmix_server.domain.variant import Variant


@dataclass(frozen=True, slots=True)
class EngineChunk:
    """New tokens of one request. Counts are totals so far; finished on its last chunk."""

    completions: tuple[Completion, ...]
    num_prompt_tokens: int
    num_cached_tokens: int
    prompt_logprobs: tuple[float, ...]
    is_finished: bool


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is. `used_kv_blocks` counts blocks that requests in flight hold."""

    num_running: int
    num_waiting: int
    used_kv_blocks: int


class Engine(Protocol):
    """Runs tokens under registered variants. Tasks are named by content digest."""

    async def load_task(self, name: str, digest: str) -> int:
        """Hold a task's deltas; returns their bytes. Repeating it is harmless."""

    async def unload_task(self, digest: str) -> None:
        """Let a task's deltas go. No registered variant may name it."""

    async def register_variant(self, variant: Variant) -> None:
        """Make a variant servable; its tasks are loaded. Repeating it is harmless."""

    async def forget_variant(self, variant: Variant) -> None:
        """Drop a variant that no request in flight uses."""

    def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingOptions,
        variant: Variant,
        priority: int,
    ) -> AsyncGenerator[EngineChunk]:
        """Run a request; closing the iterator stops its work."""

    def watch_load(self, observe: Callable[[EngineLoad], None]) -> None:
        """Call `observe` after each step of the engine."""

    @property
    def is_healthy(self) -> bool:
        """False once the engine has died."""

    async def close(self) -> None:
        """End the engine's processes."""
