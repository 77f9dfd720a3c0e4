"""Generation: resolve the target, hold its tasks, run the engine, say what answered."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import (
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, replace
from functools import partial

from taskmix_server.domain.generation import (
    Completion,
    Generation,
    GenerationChunk,
    GenerationRequest,
    Identity,
    Target,
)
from taskmix_server.domain.variant import Variant
from taskmix_server.engine.base import Engine, EngineChunk, WaitTurn
from taskmix_server.errors import (
    InvalidRequestError,
    ResourceExhaustedError,
    UnavailableError,
)
from taskmix_server.runtime.admission.admission import Admission, Ask
from taskmix_server.runtime.admission.costs import TokenCosts
from taskmix_server.runtime.admission.tickets import Ticket
from taskmix_server.runtime.experiments.arms import Assigned
from taskmix_server.runtime.experiments.copies import Copy
from taskmix_server.runtime.experiments.shadows import Shadows
from taskmix_server.runtime.state import ServerState
from taskmix_server.runtime.variants import VariantCache
from taskmix_server.services.pieces import advance, joined, totals
from taskmix_server.services.targets import Targets, mix_label
from taskmix_server.telemetry.requests import Report, RequestRecord
from taskmix_server.tenancy.principal import Principal


@dataclass(frozen=True, slots=True)
class InferenceService:
    """Answers generation requests; both edges lease their variants here.

    report: told of each request that an edge observed, when it has ended. costs: what a token of a
    variant counts for its tenant. shadows: who answers copies, when no request is there.
    """

    engine: Engine
    variants: VariantCache
    targets: Targets
    state: ServerState
    report: Report
    admission: Admission
    costs: TokenCosts
    shadows: Shadows

    async def generate(
        self,
        request: GenerationRequest,
        principal: Principal,
        record: RequestRecord | None = None,
    ) -> Generation:
        """Run a request to its end."""
        pieces: dict[int, list[Completion]] = {}
        prompt_logprobs: tuple[float, ...] = ()
        identity, usage, timings = None, None, None
        async with aclosing(self.stream(request, principal, record)) as chunks:
            async for chunk in chunks:
                identity = chunk.identity or identity
                usage = chunk.usage or usage
                timings = chunk.timings or timings
                prompt_logprobs = chunk.prompt_logprobs or prompt_logprobs
                for piece in chunk.completions:
                    pieces.setdefault(piece.index, []).append(piece)
        assert identity is not None, "the first chunk names what answered"
        assert usage is not None, "the last chunk counts tokens"
        assert timings is not None, "the last chunk has the times"
        completions = tuple(joined(pieces[index]) for index in sorted(pieces))
        return Generation(completions, prompt_logprobs, usage, timings, identity)

    async def stream(
        self,
        request: GenerationRequest,
        principal: Principal,
        record: RequestRecord | None = None,
    ) -> AsyncGenerator[GenerationChunk]:
        """Run a request piece by piece; closing the iterator stops the work in the engine."""
        record = record or RequestRecord(request.request_id)
        ask, sampling = Ask(request.sampling.n, request.priority), request.sampling
        async with AsyncExitStack() as held:
            ticket = held.enter_context(self.admitted(principal, ask))
            lease = self.lease(request.target, principal, record, ticket)
            variant = await held.enter_async_context(lease)
            check_head(variant, wants_prompt_logprobs=sampling.prompt_logprobs)
            identity: Identity | None = Identity(
                request.request_id,
                variant.digest,
                variant.mix.canonical_json(),
                variant.bank_revision,
                record.arm,
            )
            run = held.enter_context(record.run())
            whole = ticket.turn(request.request_id, sampling.max_tokens, sampling.n)
            turn, copy = held.enter_context(whole), ticket.take_copy()
            async with aclosing(self._run(request, variant, principal, turn.wait)) as chunks:
                async for chunk in chunks:
                    advance(run, record, chunk)
                    turn.count(run.num_prompt_tokens, run.num_output_tokens)
                    _copy(chunk, request, copy)
                    yield replace(totals(chunk, run, record), identity=identity)
                    identity = None

    def _run(
        self, request: GenerationRequest, variant: Variant, principal: Principal, turn: WaitTurn
    ) -> AsyncGenerator[EngineChunk]:
        return self.engine.generate(
            request.request_id,
            request.prompt,
            request.sampling,
            variant,
            turn,
            principal.cache_salt,
        )

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken."""
        return self.is_engine_up and not self.state.is_draining

    @property
    def is_engine_up(self) -> bool:
        """Whether the engine answers, with all that it is to hold."""
        return self.engine.is_healthy and not self.state.is_restoring

    def count(self, principal: Principal) -> None:
        """Count a request whose body was not looked at, or say when to come back."""
        self._check_ready()
        self.admission.count(principal)

    @contextmanager
    def admitted(
        self, principal: Principal, ask: Ask, *, is_counted: bool = False
    ) -> Iterator[Ticket]:
        """Let a request in before anything is done for it, or say when to come back."""
        self._check_ready()
        entered = self.admission.admitted(principal, ask, is_counted=is_counted)
        with entered as ticket, self.shadows.aside():
            yield ticket

    @asynccontextmanager
    async def lease(
        self, target: Target, principal: Principal, record: RequestRecord, ticket: Ticket
    ) -> AsyncIterator[Variant]:
        """The variant of a target, servable inside the block; the record says what it came from.

        Raises PermissionDeniedError for what the caller may not write; what it may not use is as
        unknown as what is not there.
        """
        mix, assigned = await self.targets.resolve(target, principal, record.request_id)
        if assigned is not None:
            self._watch(assigned, principal, record, ticket)
        async with self.variants.lease(mix, principal.may_use_task) as variant:
            if assigned is not None:
                assigned.check_content(variant.digest)
            record.resolve(mix_label(target, mix), mix.tasks, variant.digest, _label(assigned))
            ticket.cost_per_token = self.costs.of(variant)
            yield variant

    @asynccontextmanager
    async def observed(
        self, record: RequestRecord, status_of: Callable[[BaseException], str]
    ) -> AsyncIterator[RequestRecord]:
        """Report a request when the block has ended; an error of it has the edge's `status_of`."""
        try:
            with self.state.in_flight():
                yield record
        except BaseException as error:
            record.error, record.status = type(error).__name__, status_of(error)
            record.limit = error.reason if isinstance(error, ResourceExhaustedError) else ""
            raise
        finally:
            record.ended_s = time.monotonic()
            for tell in (self.report, *record.watchers):
                tell(record)

    def _check_ready(self) -> None:
        if self.state.is_draining:
            raise UnavailableError("the server is shutting down; send the request elsewhere")
        if not self.is_engine_up:
            raise UnavailableError("the engine stopped and is started again; retry in a while")

    def _watch(
        self, assigned: Assigned, principal: Principal, record: RequestRecord, ticket: Ticket
    ) -> None:
        """Let the experiment know how a request ends, also one whose arm cannot be made ready."""
        record.watchers.append(partial(self.targets.experiments.observe, assigned))
        if assigned.shadows:
            ticket.copy = Copy(principal.cache_salt)
            record.watchers.append(partial(self.shadows.offer, ticket.copy, assigned))


def check_head(variant: Variant, *, wants_prompt_logprobs: bool) -> None:
    """Refuse what a changed head cannot answer.

    vLLM computes prompt log-probabilities outside the batch that its samples belong to, so that
    rows could take another request's head.
    """
    if wants_prompt_logprobs and variant.changes_head:
        raise InvalidRequestError(
            "prompt log-probabilities are not available under a mix that changes the output "
            "head (lm_head, or an embedding tied to it); ask without them, or ask the base"
        )


def _copy(chunk: EngineChunk, request: GenerationRequest, copy: Copy | None) -> None:
    """Let a copy hear what is new in the first answer."""
    if copy is None:
        return
    for piece in chunk.completions:
        if piece.index == 0:
            copy.hear(piece.token_ids)
    if chunk.is_finished:
        copy.end(chunk.prompt_token_ids, request.sampling)


def _label(assigned: Assigned | None) -> str:
    return assigned.label if assigned else ""
