"""Messages to domain values and back; the only place that knows both."""

from typing import Any

from taskmix.v1 import bank_pb2, common_pb2, inference_pb2
from taskmix_composer.mix import Mix
from taskmix_composer.mix.mixture import MAX_TERMS
from taskmix_composer.mix.term import MAX_OVERRIDES
from taskmix_composer.recipe import Recipe, parse_mix
from taskmix_server.domain.generation import (
    ChatMessage,
    Completion,
    ExperimentTarget,
    FinishReason,
    Generation,
    GenerationChunk,
    GenerationRequest,
    Identity,
    NamedMix,
    Prompt,
    SamplingOptions,
    Target,
    Timings,
    Usage,
)
from taskmix_server.domain.limits import (
    MAX_MASKS,
    MAX_MESSAGES,
    MAX_PROMPT_TOKENS,
    MAX_STOP_STRINGS,
    check_count,
)
from taskmix_server.errors import InvalidRequestError
from taskmix_server.runtime.statuses import TaskState, TaskStatus
from taskmix_server.services.bank import DescribedMix

_REASONS = {
    None: inference_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
}

_STATES = {
    TaskState.ON_DISK: bank_pb2.TASK_STATE_ON_DISK,
    TaskState.LOADING: bank_pb2.TASK_STATE_LOADING,
    TaskState.RESIDENT: bank_pb2.TASK_STATE_RESIDENT,
    TaskState.UNLOADING: bank_pb2.TASK_STATE_UNLOADING,
    TaskState.OFFLOADED: bank_pb2.TASK_STATE_OFFLOADED,
}


def to_request(message: inference_pb2.GenerateRequest, request_id: str) -> GenerationRequest:
    """Raises InvalidRequestError or InvalidMixError."""
    return GenerationRequest(
        request_id=request_id,
        prompt=_prompt(message),
        target=_target(message),
        sampling=to_sampling(message.sampling),
        priority=message.priority,
    )


def to_sampling(message: inference_pb2.Sampling) -> SamplingOptions:
    """Absent fields take the server's defaults; both sides name the options alike."""
    check_count(len(message.stop), MAX_STOP_STRINGS, "stop texts")
    present: dict[str, Any] = {
        field.name: tuple(value) if field.name == "stop" else value
        for field, value in message.ListFields()
    }
    return SamplingOptions(**present)


def to_mix(message: common_pb2.Mix) -> Mix | Recipe:
    """Raises InvalidMixError, or InvalidRequestError for one that is too large to be looked at."""
    if message.HasField("terms"):
        terms = message.terms.terms
        check_count(len(terms), MAX_TERMS, "terms of a mix")
        return Mix.from_json({"terms": [_term_json(term) for term in terms]})
    if message.HasField("expression"):
        return parse_mix(message.expression)
    return Mix()


def to_generate_response(result: Generation) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(
        completions=[_completion(completion) for completion in result.completions],
        usage=_usage(result.usage),
        timings=_timings(result.timings),
        identity=_identity(result.identity),
        prompt_logprobs=result.prompt_logprobs,
    )


def to_stream_response(chunk: GenerationChunk) -> inference_pb2.StreamGenerateResponse:
    return inference_pb2.StreamGenerateResponse(
        completions=[_completion(completion) for completion in chunk.completions],
        identity=_identity(chunk.identity) if chunk.identity else None,
        usage=_usage(chunk.usage) if chunk.usage else None,
        timings=_timings(chunk.timings) if chunk.timings else None,
        prompt_logprobs=chunk.prompt_logprobs,
    )


def to_task_info(status: TaskStatus) -> bank_pb2.TaskInfo:
    return bank_pb2.TaskInfo(
        name=status.name,
        scheme=status.scheme,
        bytes=status.num_bytes,
        digest=status.digest,
        state=_STATES[status.state],
        references=status.references,
    )


def to_named_mix(described: DescribedMix) -> bank_pb2.NamedMix:
    return bank_pb2.NamedMix(
        name=described.record.name,
        mix_json=described.record.mix.canonical_json(),
        mix_digest=described.digest,
    )


def _prompt(message: inference_pb2.GenerateRequest) -> Prompt:
    match message.WhichOneof("input"):
        case "prompt" if message.prompt:
            return message.prompt
        case "token_ids" if message.token_ids.ids:
            check_count(len(message.token_ids.ids), MAX_PROMPT_TOKENS, "token ids")
            return tuple(message.token_ids.ids)
        case "chat" if message.chat.messages:
            check_count(len(message.chat.messages), MAX_MESSAGES, "messages")
            return tuple(ChatMessage(turn.role, turn.content) for turn in message.chat.messages)
    raise InvalidRequestError("the request has no input: set prompt, token_ids or chat")


def _target(message: inference_pb2.GenerateRequest) -> Target:
    match message.WhichOneof("target"):
        case "mix_name":
            return NamedMix(message.mix_name)
        case "experiment":
            return ExperimentTarget(message.experiment.name, message.experiment.subject)
        case _:
            return to_mix(message.mix)


def _term_json(term: common_pb2.Term) -> dict[str, Any]:
    check_count(len(term.masks), MAX_MASKS, "masks of a term")
    form: dict[str, Any] = {
        "task": term.task,
        "coefficient": term.coefficient,
        "masks": list(term.masks),
    }
    if term.HasField("layers"):
        scales = term.layers
        check_count(len(scales.by_layer), MAX_OVERRIDES, "scales by layer of a term")
        check_count(len(scales.by_tensor), MAX_OVERRIDES, "scales by tensor of a term")
        form["layers"] = {
            "default": scales.default if scales.HasField("default") else 1.0,
            "by_layer": {str(layer): scale for layer, scale in scales.by_layer.items()},
            "by_tensor": dict(scales.by_tensor),
        }
    return form


def _completion(completion: Completion) -> inference_pb2.Completion:
    return inference_pb2.Completion(
        index=completion.index,
        text=completion.text,
        token_ids=completion.token_ids,
        logprobs=completion.logprobs,
        finish_reason=_REASONS[completion.finish_reason],
    )


def _usage(usage: Usage) -> inference_pb2.Usage:
    return inference_pb2.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        cached_tokens=usage.cached_tokens,
    )


def _timings(timings: Timings) -> inference_pb2.Timings:
    return inference_pb2.Timings(ttft_s=timings.ttft_s, total_s=timings.total_s)


def _identity(identity: Identity) -> inference_pb2.Identity:
    return inference_pb2.Identity(
        request_id=identity.request_id,
        mix_digest=identity.mix_digest,
        mix_json=identity.mix_json,
        bank_revision=identity.bank_revision,
        arm=identity.arm,
    )
