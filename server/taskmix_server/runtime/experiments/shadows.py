"""Shadow arms: copies of requests that run unseen while the engine has nothing else to do."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace

from taskmix_server.domain.generation import SamplingOptions
from taskmix_server.domain.variant import Variant
from taskmix_server.engine.base import Engine
from taskmix_server.errors import FailedPreconditionError, InvalidRequestError
from taskmix_server.experiments.design import Shadow
from taskmix_server.experiments.outcome import Measured
from taskmix_server.runtime.experiments.arms import Assigned
from taskmix_server.runtime.experiments.copies import Copy
from taskmix_server.runtime.experiments.running import Experiments
from taskmix_server.runtime.variants import VariantCache
from taskmix_server.telemetry.outcomes import FAILED, OK
from taskmix_server.telemetry.requests import RequestRecord

logger = logging.getLogger(__name__)

BUSY, FULL = "busy", "full"
"""Why a copy was dropped: a request came, or too many copies waited."""

PRIORITY = 2**53
"""In vLLM's queue: behind every request."""

QUIET_S = 0.05
MAX_PENDING = 64


@dataclass(frozen=True, slots=True)
class _Pending:
    """A copy, and the shadow arm that is to answer it."""

    copy: Copy
    assigned: Assigned
    shadow: Shadow


@dataclass(frozen=True, slots=True)
class _Answered:
    """A shadow's answer: its tokens, and seconds to the first and to the last of them."""

    tokens: tuple[int, ...]
    ttft_s: float
    latency_s: float
    finish_reason: str


class Shadows:
    """Runs copies one at a time, while no request is open. One event loop only.

    A request that comes ends the copy that is running: it waits for one step of the engine at
    most. What a copy costs is nobody's: it is neither charged nor limited.

    tell: told what became of each copy: `OK`, `FAILED`, `BUSY` or `FULL`. quiet_s: without a
    request, before a copy is run.
    """

    def __init__(
        self,
        engine: Engine,
        variants: VariantCache,
        experiments: Experiments,
        tell: Callable[[str], None] = lambda _: None,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._engine = engine
        self._variants = variants
        self._experiments = experiments
        self._tell = tell
        self._quiet_s = quiet_s
        self._pending: deque[_Pending] = deque()
        self._num_open = 0
        self._changed = asyncio.Event()
        self._running: asyncio.Task[Measured] | None = None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the engine to a request while the block runs."""
        self._num_open += 1
        if self._running is not None:
            self._running.cancel()
        try:
            yield
        finally:
            self._num_open -= 1
            self._changed.set()

    def offer(self, copy: Copy, assigned: Assigned, record: RequestRecord) -> None:
        """Take in the copy of a request that has ended, if it was answered; the oldest makes room.

        What was asked and answered is known then, so that nothing of it waits for a shadow.
        """
        if record.error or not copy.is_whole:
            return
        for shadow in assigned.shadows:
            if len(self._pending) == MAX_PENDING:
                self._pending.popleft()
                self._tell(FULL)
            self._pending.append(_Pending(copy, assigned, shadow))
        self._changed.set()

    async def run(self) -> None:
        """Run copies, until cancelled."""
        while True:
            await self._quiet()
            await self._run_one(self._pending.popleft())

    async def _quiet(self) -> None:
        """Wait until there is a copy to run, and no request has been open for a while."""
        while True:
            self._changed.clear()
            if self._pending and not self._num_open:
                await asyncio.sleep(self._quiet_s)
                if self._pending and not self._changed.is_set() and not self._num_open:
                    return
            else:
                await self._changed.wait()

    async def _run_one(self, pending: _Pending) -> None:
        """Run a copy to its end, or until a request comes."""
        started_s = time.monotonic()
        self._running = asyncio.create_task(self._measured(pending))
        try:
            await asyncio.wait([self._running])
        finally:
            ended, self._running = self._running, None
            ended.cancel()
        try:
            self._experiments.keep(ended.result())
        except asyncio.CancelledError:
            self._tell(BUSY)
        except Exception as error:  # the edge of a loop that must outlive whatever fails in it
            logger.exception("shadow arm %s cannot answer", pending.shadow.name)
            failed = self._copied(pending, time.monotonic() - started_s)
            self._experiments.keep(replace(failed, error=type(error).__name__))
            self._tell(FAILED)
        else:
            self._tell(OK)

    def _copied(self, pending: _Pending, latency_s: float) -> Measured:
        """What is kept of every copy, whether it was answered or not."""
        assigned = pending.assigned
        return Measured(
            experiment_id=assigned.experiment.id,
            tenant_id=assigned.tenant_id,
            request_id=assigned.request_id,
            arm=pending.shadow.name,
            subject=assigned.subject,
            is_override=assigned.is_override,
            at=self._experiments.now(),
            latency_s=latency_s,
            ttft_s=None,
            num_tokens=0,
            is_shadow=True,
        )

    async def _measured(self, pending: _Pending) -> Measured:
        shadow, copy = pending.shadow, pending.copy
        async with self._variants.lease(shadow.mix) as variant:
            if variant.digest != shadow.mix_digest:
                raise FailedPreconditionError(
                    f"a task of shadow arm {shadow.name!r} has changed since the experiment was "
                    "made; create a new version of it"
                )
            unseen = replace(variant, is_shadow=True)
            answered = await self._answered(pending, unseen)
            logprob = await self._served_logprob(pending, unseen)
        return replace(
            self._copied(pending, answered.latency_s),
            ttft_s=answered.ttft_s,
            num_tokens=len(answered.tokens),
            finish_reason=answered.finish_reason,
            agreement=copy.agreement(answered.tokens),
            served_logprob=logprob,
            served_tokens=len(copy.tokens),
        )

    async def _answered(self, pending: _Pending, variant: Variant) -> _Answered:
        """What the shadow answers to the prompt, sampled as the request's first answer was."""
        copy, started_s = pending.copy, time.monotonic()
        sampling = replace(copy.sampling, n=1, logprobs=False, prompt_logprobs=False)
        tokens: list[int] = []
        first_s, reason = 0.0, ""
        chunks = self._engine.generate(
            f"shadow-{pending.assigned.request_id}-{pending.shadow.name}",
            copy.prompt,
            sampling,
            variant,
            _last,
            copy.cache_salt,
        )
        async with aclosing(chunks):
            async for chunk in chunks:
                for piece in chunk.completions:
                    first_s = first_s or time.monotonic()
                    tokens += piece.token_ids
                    reason = piece.finish_reason.value if piece.finish_reason else ""
        ended_s = time.monotonic()
        return _Answered(
            tuple(tokens), (first_s or ended_s) - started_s, ended_s - started_s, reason
        )

    async def _served_logprob(self, pending: _Pending, variant: Variant) -> float | None:
        """The mean log-probability that the shadow gives to the tokens that were served.

        None where it cannot be known: a changed head, nothing served, or no room for one token
        more.
        """
        copy = pending.copy
        values: tuple[float, ...] = ()
        if variant.changes_head or not copy.tokens:
            return None
        chunks = self._engine.generate(
            f"shadow-{pending.assigned.request_id}-{pending.shadow.name}-served",
            (*copy.prompt, *copy.tokens),
            SamplingOptions(max_tokens=1, temperature=0.0, prompt_logprobs=True),
            variant,
            _last,
            copy.cache_salt,
        )
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    values = chunk.prompt_logprobs or values
        except InvalidRequestError:
            return None
        served = values[-len(copy.tokens) :]
        return sum(served) / len(served) if served else None


async def _last(num_prompt_tokens: int) -> int:
    """A `WaitTurn`: no place in the line, the last one in vLLM's queue."""
    return PRIORITY
