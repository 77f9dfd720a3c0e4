"""An engine that gives no answer is ended, so that it is noticed and a new one is started."""

import asyncio
import logging

from taskmix_server.engine.base import Engine
from taskmix_server.errors import ServingError

logger = logging.getLogger(__name__)

POLL_S = 5.0


class Liveness:
    """Asks the engine something now and then; it answers between two of its steps."""

    def __init__(self, engine: Engine, timeout_s: float, poll_s: float = POLL_S) -> None:
        """timeout_s: longer than any step of the engine, and than what it compiles at its first."""
        self._engine = engine
        self._timeout_s = timeout_s
        self._poll_s = poll_s

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._engine.memory()
            except TimeoutError:
                logger.error(
                    "the engine has given no answer for %.0f s and is ended", self._timeout_s
                )
                self._engine.kill()
            except ServingError as error:  # it has died, which others see to
                logger.debug("the engine was asked and said: %s", error)
