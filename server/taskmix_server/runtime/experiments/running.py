"""Experiments while requests run: which arm answers, and what is kept of it."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

from cachetools import TTLCache
from sqlalchemy.exc import IntegrityError

from taskmix_server.errors import ServingError
from taskmix_server.experiments.design import check_subject
from taskmix_server.experiments.outcome import CANCELLED, Measured
from taskmix_server.experiments.recording import RecordStore
from taskmix_server.experiments.rights import seen_by
from taskmix_server.experiments.store import ExperimentStore, Now, utc_now
from taskmix_server.runtime.changes import Changes
from taskmix_server.runtime.experiments.arms import Assigned, Served
from taskmix_server.telemetry import outcomes
from taskmix_server.telemetry.requests import RequestRecord
from taskmix_server.tenancy.principal import Principal

logger = logging.getLogger(__name__)

REMEMBERED_S = 5.0  # until a change by another server is seen
MAX_REMEMBERED = 1024
MAX_QUEUED = 10_000
BATCH = 500
FLUSH_S = 0.5


class Experiments:
    """Assigns requests to arms, and keeps what they left behind. One event loop only.

    What a request left waits in a bounded queue, to be written in batches; over the bound it is
    dropped, and `tell_dropped` is told how many were.
    """

    def __init__(
        self,
        store: ExperimentStore,
        records: RecordStore,
        *,
        now: Now = utc_now,
        max_queued: int = MAX_QUEUED,
        tell_dropped: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._records = records
        self.now = now
        self._max_queued = max_queued
        self._tell_dropped = tell_dropped
        self._served: TTLCache[str, Served] = TTLCache(MAX_REMEMBERED, REMEMBERED_S, time.monotonic)
        self._generation = 0
        self._queue: deque[Measured] = deque()
        self._changes = Changes()
        self._timer: asyncio.Task[None] | None = None

    async def assign(
        self, name: str, subject: str, request_id: str, principal: Principal
    ) -> Assigned:
        """The arm of a subject, or of the request itself where the subject is empty.

        Raises NotFoundError for what does not exist for the caller, FailedPreconditionError for a
        draft, InvalidRequestError for a subject that cannot be kept.
        """
        if subject:
            check_subject(subject)
        served = await self._find(name)
        seen_by(principal)(served.experiment)
        return served.assigned(subject, request_id, principal.tenant.id)

    def forget(self) -> None:
        """Read experiments anew: every change of one calls it."""
        self._generation += 1
        self._served.clear()

    def observe(self, assigned: Assigned, record: RequestRecord) -> None:
        """Keep what an ended request left, if it was part of its experiment.

        What was refused for limits or for what it asked says nothing about its arm. An answer that
        was not there by the caller's deadline is an error; a caller who left without one is not.
        """
        if not assigned.arm or record.error in outcomes.CALLERS_OWN:
            return
        is_late = record.error in outcomes.CUT_OFF and record.status == outcomes.LATE
        is_cancelled = record.error in outcomes.CANCELLATIONS and not is_late
        self.keep(
            Measured(
                experiment_id=assigned.experiment.id,
                tenant_id=assigned.tenant_id,
                request_id=assigned.request_id,
                arm=assigned.arm,
                subject=assigned.subject,
                is_override=assigned.is_override,
                at=self.now(),
                latency_s=record.duration_s,
                ttft_s=record.ttft_s,
                num_tokens=record.num_output_tokens,
                error="" if is_cancelled else record.error,
                finish_reason=CANCELLED if is_cancelled else record.finish_reason,
            )
        )

    def keep(self, measured: Measured) -> None:
        """Queue a measured request, a shadow's too."""
        if len(self._queue) >= self._max_queued:
            self._tell_dropped(1)
            return
        self._queue.append(measured)
        if self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._flush_soon())

    async def flush(self) -> None:
        """Write what is queued now; outcomes of it can be recorded afterwards.

        Raises UnavailableError if the database does not work; the queue keeps what it holds.
        """
        await self._changes.run(self._write_all)

    async def close(self) -> None:
        """Write what is left; what the database does not take now is lost, and counted."""
        if self._timer is not None:
            self._timer.cancel()
        try:
            await self.flush()
        except ServingError as error:
            logger.warning("%d requests of experiments are lost: %s", len(self._queue), error)
            self._tell_dropped(len(self._queue))

    async def _find(self, name: str) -> Served:
        known = self._served.get(name)
        if known is not None:
            return known
        generation = self._generation
        found = Served.of(await asyncio.to_thread(self._store.served, name))
        if generation == self._generation:
            self._served[name] = found
        return found

    async def _flush_soon(self) -> None:
        """Write the queue in batches until it is empty."""
        while self._queue:
            await asyncio.sleep(FLUSH_S)
            try:
                await self.flush()
            except ServingError as error:
                logger.warning("requests of experiments wait for the database: %s", error)

    async def _write_all(self) -> None:
        while batch := list(islice(self._queue, BATCH)):
            try:
                await asyncio.to_thread(self._records.write, batch)
            except IntegrityError:
                logger.exception("%d requests of experiments cannot be kept", len(batch))
                self._tell_dropped(len(batch))
            for _ in batch:
                self._queue.popleft()
