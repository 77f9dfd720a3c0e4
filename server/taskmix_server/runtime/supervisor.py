"""An engine that has died is started again, with what it held."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from taskmix_composer.errors import ComposerError
from taskmix_server.engine.base import Engine
from taskmix_server.errors import ServingError, UnavailableError
from taskmix_server.runtime.state import ServerState
from taskmix_server.telemetry.outcomes import FAILED, OK

logger = logging.getLogger(__name__)

WAITS_S = (0.0, 1.0, 5.0, 15.0, 30.0)
"""Before each start of an engine, counted over `WINDOW_S`; after the last one there is no more."""

WINDOW_S = 600.0

EXPECTED = (ServingError, ComposerError, OSError)
"""What a try may end with: files that are away for a moment, too. Another error is a defect, and is
logged with where it came from."""

Restore = Callable[[], Awaitable[None]]
"""Gives a new engine back a part of what the dead one held."""

AfterRestart = Callable[[str], None]
"""Told of each try to start an engine again: `ok` or `failed`."""


class EngineSupervisor:
    """Watches the engine from the first request to the last."""

    def __init__(
        self,
        engine: Engine,
        state: ServerState,
        restores: Sequence[Restore],
        after_restart: AfterRestart,
        waits_s: Sequence[float] = WAITS_S,
    ) -> None:
        """`restores` are run in their order."""
        self._engine = engine
        self._state = state
        self._restores = restores
        self._after_restart = after_restart
        self._waits_s = waits_s
        self._tries: deque[float] = deque()  # when each start began, on the monotonic clock

    async def run(self) -> None:
        """Until cancelled; UnavailableError once the engine has died too often to go on."""
        while True:
            await self._engine.died()
            self._state.is_restoring = True
            died_s = time.monotonic()
            logger.error("the engine has died; its requests end, and a new one is started")
            while not await self._is_started():
                pass
            self._state.is_restoring = False
            logger.warning("the engine is back after %.1f s", time.monotonic() - died_s)

    async def _is_started(self) -> bool:
        """Try once to start the engine and to give it back what it held."""
        await asyncio.sleep(self._next_wait_s())
        try:
            await self._engine.restart()
            for restore in self._restores:
                await restore()
        except Exception as error:
            trace = None if isinstance(error, EXPECTED) else error
            logger.warning("the engine did not come back: %s", error, exc_info=trace)
            self._after_restart(FAILED)
            return False
        self._after_restart(OK)
        return True

    def _next_wait_s(self) -> float:
        now_s = time.monotonic()
        while self._tries and now_s - self._tries[0] > WINDOW_S:
            self._tries.popleft()
        num_tries = len(self._tries)
        if num_tries == len(self._waits_s):
            raise UnavailableError(
                f"the engine was started {num_tries} times in {WINDOW_S:.0f} s and did not stay; "
                "its messages above say why"
            )
        self._tries.append(now_s)
        return self._waits_s[num_tries]
