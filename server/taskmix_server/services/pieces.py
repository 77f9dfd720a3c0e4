"""What the engine gives piece by piece: counted, joined, and told as callers see it."""

import time
from collections.abc import Sequence

from taskmix_server.domain.generation import Completion, GenerationChunk, Timings, Usage
from taskmix_server.engine.base import EngineChunk
from taskmix_server.telemetry.requests import EngineRun, RequestRecord


def advance(run: EngineRun, record: RequestRecord, chunk: EngineChunk) -> None:
    """Count what is new in a chunk."""
    run.num_prompt_tokens = chunk.num_prompt_tokens
    run.num_cached_tokens = chunk.num_cached_tokens
    tokens = {piece.index: len(piece.token_ids) for piece in chunk.completions}
    run.advance(time.monotonic(), tokens, chunk.phases)
    for piece in chunk.completions:
        if piece.finish_reason is not None:
            record.finish_reason = piece.finish_reason.value


def totals(chunk: EngineChunk, run: EngineRun, record: RequestRecord) -> GenerationChunk:
    """The chunk as a caller sees it, with usage and timings if it is the last."""
    if not chunk.is_finished:
        return GenerationChunk(chunk.completions, chunk.prompt_logprobs)
    usage = Usage(chunk.num_prompt_tokens, run.num_output_tokens, chunk.num_cached_tokens)
    total_s = time.monotonic() - record.started_s
    timings = Timings(total_s if record.ttft_s is None else record.ttft_s, total_s)
    return GenerationChunk(chunk.completions, chunk.prompt_logprobs, usage=usage, timings=timings)


def joined(pieces: Sequence[Completion]) -> Completion:
    """All pieces of one completion, in their order."""
    return Completion(
        index=pieces[0].index,
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token for piece in pieces for token in piece.token_ids),
        logprobs=tuple(value for piece in pieces for value in piece.logprobs),
        finish_reason=pieces[-1].finish_reason,
    )
