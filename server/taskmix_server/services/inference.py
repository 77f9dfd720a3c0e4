"""Generation: resolve the target, hold its tasks, run the engine, say what answered."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from taskmix_composer.mix import Mix, Term
from taskmix_composer.recipe import Recipe, parse_mix
from taskmix_server.domain.generation import (
    Completion,
    ExperimentTarget,
    Generation,
    GenerationChunk,
    GenerationRequest,
    Identity,
    NamedMix,
    Target,
    Timings,
    Usage,
)
from taskmix_server.domain.variant import Variant
from taskmix_server.engine.base import Engine, EngineChunk
from taskmix_server.errors import InvalidRequestError, NotFoundError, UnavailableError
from taskmix_server.runtime.mixes import NamedMixStore
from taskmix_server.runtime.recipes import RecipeExpander
from taskmix_server.runtime.state import ServerState
from taskmix_server.runtime.variants import VariantCache
from taskmix_server.telemetry.labels import BASE, INLINE
from taskmix_server.telemetry.requests import EngineRun, Report, RequestRecord
from taskmix_server.tenancy.principal import Principal


@dataclass(frozen=True, slots=True)
class InferenceService:
    """Answers generation requests; both edges lease their variants here.

    report: told of each request that an edge observed, when it has ended.
    """

    engine: Engine
    variants: VariantCache
    recipes: RecipeExpander
    mixes: NamedMixStore
    state: ServerState
    report: Report

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
        completions = tuple(_joined(pieces[index]) for index in sorted(pieces))
        return Generation(completions, prompt_logprobs, usage, timings, identity)

    async def stream(
        self,
        request: GenerationRequest,
        principal: Principal,
        record: RequestRecord | None = None,
    ) -> AsyncGenerator[GenerationChunk]:
        """Run a request piece by piece; closing the iterator stops the work in the engine."""
        record = record or RequestRecord(request.request_id)
        async with self.lease(request.target, principal, record) as (variant, arm):
            check_head(variant, wants_prompt_logprobs=request.sampling.prompt_logprobs)
            identity: Identity | None = Identity(
                request.request_id,
                variant.digest,
                variant.mix.canonical_json(),
                variant.bank_revision,
                arm,
            )
            async with aclosing(self._run(request, variant, principal)) as chunks:
                with record.run() as run:
                    async for chunk in chunks:
                        _advance(run, chunk)
                        yield replace(_totals(chunk, run, record), identity=identity)
                        identity = None

    def _run(
        self, request: GenerationRequest, variant: Variant, principal: Principal
    ) -> AsyncGenerator[EngineChunk]:
        return self.engine.generate(
            request.request_id,
            request.prompt,
            request.sampling,
            variant,
            request.priority,
            principal.cache_salt,
        )

    @asynccontextmanager
    async def lease(
        self, target: Target, principal: Principal, record: RequestRecord
    ) -> AsyncIterator[tuple[Variant, str]]:
        """The variant of a target and the arm it came from, servable inside the block.

        Raises PermissionDeniedError for what the caller may not write; what it may not use is as
        unknown as what is not there.
        """
        if self.state.is_draining:
            raise UnavailableError("the server is shutting down; send the request elsewhere")
        if not self.engine.is_healthy:
            raise UnavailableError("the engine is down; try again later")
        mix, arm = await self._resolve(target, principal)
        async with self.variants.lease(mix, principal.may_use_task) as variant:
            record.resolve(mix_label(target, mix), mix.tasks, variant.digest, arm)
            yield variant, arm

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
            raise
        finally:
            record.ended_s = time.monotonic()
            self.report(record)

    async def find(self, model: str, base_name: str, principal: Principal) -> Target:
        """What an OpenAI `model` name means: base, registered mix, experiment, or expression."""
        if model in (base_name, "base"):
            return Mix()
        if await asyncio.to_thread(self.mixes.find, model, principal.may_use_mix) is not None:
            return NamedMix(model)
        if model.startswith("experiment:"):
            return ExperimentTarget(model.removeprefix("experiment:"), subject="")
        return parse_mix(model)

    async def _resolve(self, target: Target, principal: Principal) -> tuple[Mix, str]:
        match target:
            case NamedMix(name):
                record = await asyncio.to_thread(self.mixes.get, name, principal.may_use_mix)
                return record.mix, ""
            case ExperimentTarget(name):
                raise NotFoundError(f"no experiment is named {name!r}")
            case Mix() | Recipe():
                principal.check_written(target)
                mix = await self.recipes.expand(target, principal.may_use_task)
                principal.check_written(mix)  # a method may come to negative coefficients
                return mix, ""


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


def mix_label(target: Target, mix: Mix) -> str:
    """What stands for a mix in labels: its registered name, its task if it is that and no more."""
    if isinstance(target, NamedMix):
        return target.name
    if mix.is_base:
        return BASE
    is_task = mix.terms == (Term(mix.tasks[0]),)
    return mix.tasks[0] if is_task else INLINE


def _advance(run: EngineRun, chunk: EngineChunk) -> None:
    run.num_prompt_tokens = chunk.num_prompt_tokens
    run.num_cached_tokens = chunk.num_cached_tokens
    tokens = {piece.index: len(piece.token_ids) for piece in chunk.completions}
    run.advance(time.monotonic(), tokens, chunk.phases)


def _totals(chunk: EngineChunk, run: EngineRun, record: RequestRecord) -> GenerationChunk:
    """The chunk as a caller sees it, with usage and timings if it is the last."""
    if not chunk.is_finished:
        return GenerationChunk(chunk.completions, chunk.prompt_logprobs)
    num_tokens = sum(run.num_tokens.values())
    usage = Usage(chunk.num_prompt_tokens, num_tokens, chunk.num_cached_tokens)
    total_s = time.monotonic() - record.started_s
    timings = Timings(total_s if record.ttft_s is None else record.ttft_s, total_s)
    return GenerationChunk(chunk.completions, chunk.prompt_logprobs, usage=usage, timings=timings)


def _joined(pieces: list[Completion]) -> Completion:
    return Completion(
        index=pieces[0].index,
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        logprobs=tuple(value for piece in pieces for value in piece.logprobs),
        finish_reason=pieces[-1].finish_reason,
    )
