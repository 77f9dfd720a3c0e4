"""The loop that removes what is kept of experiments for too long."""

import asyncio
import logging

from taskmix_server.database import Database
from taskmix_server.experiments.retention import forget_some
from taskmix_server.experiments.store import Now, utc_now

logger = logging.getLogger(__name__)

INTERVAL_S = 3600.0
PAUSE_S = 0.1
"""Between two batches, in which others write."""


class Tidying:
    """Removes old rows, now and every hour. One event loop only."""

    def __init__(self, database: Database, now: Now = utc_now) -> None:
        self._database = database
        self._now = now

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self.tidy()
            except Exception:  # the edge of a loop that must outlive whatever fails in it
                logger.exception("old rows of experiments cannot be removed")
            await asyncio.sleep(INTERVAL_S)

    async def tidy(self) -> None:
        """Remove all that is kept no longer."""
        num_rows = 0
        while num_removed := await asyncio.to_thread(forget_some, self._database, self._now()):
            num_rows += num_removed
            await asyncio.sleep(PAUSE_S)
        if num_rows:
            logger.info("removed %d old rows of experiments", num_rows)
