"""What deltas take in the engine, as it was read last."""

import asyncio
from contextlib import suppress

from taskmix_server.engine.base import DeltaMemory, Engine
from taskmix_server.errors import UnavailableError

MAX_WAIT_S = 1.0


class MemoryReading:
    """The engine's own figures, for readers that cannot wait until a step or a load has ended."""

    def __init__(self, engine: Engine, max_wait_s: float = MAX_WAIT_S) -> None:
        self.last = DeltaMemory()
        self._engine = engine
        self._max_wait_s = max_wait_s
        self._asking: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Ask the engine, unless it still owes an answer; after `max_wait_s` go on without it."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
        await asyncio.wait({self._asking}, timeout=self._max_wait_s)

    async def _ask(self) -> None:
        with suppress(UnavailableError):  # the readiness probe tells of an engine that is down
            self.last = await self._engine.memory()
