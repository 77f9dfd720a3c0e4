"""Generation: resolve the target, hold its tasks, run the engine, say what answered."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace

from taskmix_composer.mix import Mix
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
from taskmix_server.telemetry.metrics import Metrics


@dataclass(slots=True)
class Outcome:
    """How a request ended: `ok`, an error's name, or a status."""

    name: str = "ok"


@dataclass(frozen=True, slots=True)
class InferenceService:
    """Answers generation requests; both edges lease their variants here."""

    engine: Engine
    variants: VariantCache
    recipes: RecipeExpander
    mixes: NamedMixStore
    metrics: Metrics
    state: ServerState

    async def generate(self, request: GenerationRequest) -> Generation:
        """Run a request to its end."""
        pieces: dict[int, list[Completion]] = {}
        prompt_logprobs: tuple[float, ...] = ()
        identity, usage, timings = None, None, None
        async with aclosing(self.stream(request)) as chunks:
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

    async def stream(self, request: GenerationRequest) -> AsyncGenerator[GenerationChunk]:
        """Run a request piece by piece; closing the iterator stops the work in the engine."""
        started_s = time.monotonic()
        async with self.lease(request.target) as (variant, arm):
            check_head(variant, wants_prompt_logprobs=request.sampling.prompt_logprobs)
            identity: Identity | None = Identity(
                request.request_id,
                variant.digest,
                variant.mix.canonical_json(),
                variant.bank_revision,
                arm,
            )
            first_s: float | None = None
            num_tokens = 0
            async with aclosing(self._run(request, variant)) as chunks:
                async for chunk in chunks:
                    now_s = time.monotonic() - started_s
                    first_s = now_s if first_s is None else first_s
                    num_tokens += sum(len(piece.token_ids) for piece in chunk.completions)
                    totals = _totals(chunk, num_tokens, first_s, now_s)
                    yield replace(totals, identity=identity)
                    identity = None

    def _run(self, request: GenerationRequest, variant: Variant) -> AsyncGenerator[EngineChunk]:
        return self.engine.generate(
            request.request_id, request.prompt, request.sampling, variant, request.priority
        )

    @asynccontextmanager
    async def lease(self, target: Target) -> AsyncIterator[tuple[Variant, str]]:
        """The variant of a target and the arm it came from, servable inside the block."""
        if self.state.is_draining:
            raise UnavailableError("the server is shutting down; send the request elsewhere")
        if not self.engine.is_healthy:
            raise UnavailableError("the engine is down; try again later")
        mix, arm = await self._resolve(target)
        async with self.variants.lease(mix) as variant:
            yield variant, arm

    @asynccontextmanager
    async def counted(self, edge: str) -> AsyncIterator["Outcome"]:
        """Count a request of an edge by its outcome, which the block may name."""
        outcome = Outcome()
        try:
            with self.state.in_flight():
                yield outcome
        except BaseException as error:
            outcome.name = type(error).__name__
            raise
        finally:
            self.metrics.requests.labels(edge, outcome.name).inc()

    async def find(self, model: str, base_name: str) -> Target:
        """What an OpenAI `model` name means: base, registered mix, experiment, or expression."""
        if model in (base_name, "base"):
            return Mix()
        if await asyncio.to_thread(self.mixes.find, model) is not None:
            return NamedMix(model)
        if model.startswith("experiment:"):
            return ExperimentTarget(model.removeprefix("experiment:"), subject="")
        return parse_mix(model)

    async def _resolve(self, target: Target) -> tuple[Mix, str]:
        match target:
            case NamedMix(name):
                record = await asyncio.to_thread(self.mixes.get, name)
                return record.mix, ""
            case ExperimentTarget(name):
                raise NotFoundError(f"no experiment is named {name!r}")
            case Mix() | Recipe():
                return await self.recipes.expand(target), ""


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


def _totals(chunk: EngineChunk, num_tokens: int, first_s: float, now_s: float) -> GenerationChunk:
    """The chunk as a caller sees it, with usage and timings if it is the last."""
    if not chunk.is_finished:
        return GenerationChunk(chunk.completions, chunk.prompt_logprobs)
    usage = Usage(chunk.num_prompt_tokens, num_tokens, chunk.num_cached_tokens)
    return GenerationChunk(
        chunk.completions, chunk.prompt_logprobs, usage=usage, timings=Timings(first_s, now_s)
    )


def _joined(pieces: list[Completion]) -> Completion:
    return Completion(
        index=pieces[0].index,
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        logprobs=tuple(value for piece in pieces for value in piece.logprobs),
        finish_reason=pieces[-1].finish_reason,
    )
