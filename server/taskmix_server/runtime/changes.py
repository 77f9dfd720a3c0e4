"""Changes of shared state: one at a time, and never half done."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")
Change = Callable[[], Coroutine[Any, Any, ResultT]]


class Changes:
    """Runs changes in tasks of their own, in turn.

    A caller that is cancelled (a deadline, a closed connection) leaves; its change goes on to its
    end, so that front and engine agree on what is held.
    """

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, change: Change[ResultT]) -> ResultT:
        """Make a change and return its result."""
        return await asyncio.shield(self.start(change))

    def start(self, change: Change[ResultT]) -> asyncio.Task[ResultT]:
        """Make a change that nobody needs to wait for; asyncio logs its failure."""
        task = asyncio.create_task(self._in_turn(change))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _in_turn(self, change: Change[ResultT]) -> ResultT:
        async with self._turn:
            return await change()
