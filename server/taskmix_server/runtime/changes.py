"""Changes of shared state: one at a time, and never half done."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from taskmix_server.errors import UnavailableError

ResultT = TypeVar("ResultT")
Change = Callable[[], Coroutine[Any, Any, ResultT]]

MAX_WAIT_S = 15.0
"""For the turn of a change of the database alone: with its own waits, who asks hears in 30 s."""


class Changes:
    """Runs changes in tasks of their own, in turn.

    A caller that is cancelled (a deadline, a closed connection) leaves; its change goes on to its
    end, so that front and engine agree on what is held.
    """

    def __init__(self, max_wait_s: float | None = None) -> None:
        """max_wait_s: for the turn of a change that somebody waits for; None waits for ever."""
        self._max_wait_s = max_wait_s
        self._turn = asyncio.Lock()
        self._running: set[asyncio.Task[Any]] = set()

    async def run(self, change: Change[ResultT]) -> ResultT:
        """Make a change and return its result.

        Raises UnavailableError, with nothing done, if those before it take too long.
        """
        return await asyncio.shield(self._begin(change, self._max_wait_s))

    def start(self, change: Change[ResultT]) -> asyncio.Task[ResultT]:
        """Make a change that nobody needs to wait for; asyncio logs its failure."""
        return self._begin(change, None)

    def _begin(self, change: Change[ResultT], max_wait_s: float | None) -> asyncio.Task[ResultT]:
        task = asyncio.create_task(self._in_turn(change, max_wait_s))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def _in_turn(self, change: Change[ResultT], max_wait_s: float | None) -> ResultT:
        await self._take_turn(max_wait_s)
        try:
            return await change()
        finally:
            self._turn.release()

    async def _take_turn(self, max_wait_s: float | None) -> None:
        try:
            async with asyncio.timeout(max_wait_s):
                await self._turn.acquire()
        except TimeoutError as error:
            raise UnavailableError(
                f"the changes before this one took {max_wait_s:g} s and are not through; nothing "
                "was changed, retry in a while"
            ) from error
