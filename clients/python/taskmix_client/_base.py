"""What both clients share: reading the server's messages. No I/O."""

from collections.abc import Iterator, Mapping
from typing import Any

from taskmix.v1 import bank_pb2, inference_pb2
from taskmix_client.models import Answer, Chunk, Completion, NamedMix, Task, Timings, Usage

FINISH_REASONS: Mapping[int, str] = {
    inference_pb2.FINISH_REASON_STOP: "stop",
    inference_pb2.FINISH_REASON_LENGTH: "length",
}
TASK_STATES: Mapping[int, str] = {
    bank_pb2.TASK_STATE_ON_DISK: "on disk",
    bank_pb2.TASK_STATE_LOADING: "loading",
    bank_pb2.TASK_STATE_RESIDENT: "resident",
    bank_pb2.TASK_STATE_UNLOADING: "unloading",
    bank_pb2.TASK_STATE_OFFLOADED: "offloaded",
}


def to_answer(response: inference_pb2.GenerateResponse) -> Answer:
    """Read a complete answer."""
    return Answer(
        completions=tuple(_to_completion(completion) for completion in response.completions),
        usage=_to_usage(response.usage),
        timings=_to_timings(response.timings),
        prompt_logprobs=tuple(response.prompt_logprobs),
        **_provenance(response.identity),
    )


class ChunkReader:
    """Reads the messages of one stream; says in every chunk what only the first one tells."""

    def __init__(self) -> None:
        self._identity = inference_pb2.Identity()

    def read(self, response: inference_pb2.StreamGenerateResponse) -> Iterator[Chunk]:
        """Give a message's pieces, the counts with the last of them."""
        if response.HasField("identity"):
            self._identity = response.identity
        pieces = list(response.completions) or [inference_pb2.Completion()]
        for piece in pieces[:-1]:
            yield self._to_chunk(piece, usage=None, timings=None)
        yield self._to_chunk(
            pieces[-1],
            usage=_to_usage(response.usage) if response.HasField("usage") else None,
            timings=_to_timings(response.timings) if response.HasField("timings") else None,
        )

    def _to_chunk(
        self, piece: inference_pb2.Completion, *, usage: Usage | None, timings: Timings | None
    ) -> Chunk:
        completion = _to_completion(piece)
        return Chunk(
            index=completion.index,
            text=completion.text,
            token_ids=completion.token_ids,
            logprobs=completion.logprobs,
            finish_reason=completion.finish_reason,
            usage=usage,
            timings=timings,
            **_provenance(self._identity),
        )


def to_task(info: bank_pb2.TaskInfo) -> Task:
    """Read a task."""
    return Task(
        name=info.name,
        scheme=info.scheme,
        num_bytes=info.bytes,
        digest=info.digest,
        state=TASK_STATES.get(info.state, "unknown"),
        num_references=info.references,
    )


def to_named_mix(mix: bank_pb2.NamedMix) -> NamedMix:
    """Read a named mix."""
    return NamedMix(name=mix.name, mix=mix.mix_json, mix_digest=mix.mix_digest)


def _to_completion(completion: inference_pb2.Completion) -> Completion:
    return Completion(
        index=completion.index,
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        logprobs=tuple(completion.logprobs),
        finish_reason=FINISH_REASONS.get(completion.finish_reason),
    )


def _to_usage(usage: inference_pb2.Usage) -> Usage:
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _to_timings(timings: inference_pb2.Timings) -> Timings:
    return Timings(ttft_s=timings.ttft_s, total_s=timings.total_s)


def _provenance(identity: inference_pb2.Identity) -> dict[str, Any]:
    return {
        "request_id": identity.request_id,
        "mix": identity.mix_json,
        "mix_digest": identity.mix_digest,
        "bank_revision": identity.bank_revision,
        "arm": identity.arm,
    }
