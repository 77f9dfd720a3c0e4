"""What a request may say, and its message."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from taskmix.v1 import common_pb2, inference_pb2
from taskmix_client.errors import InvalidArgumentError

Prompt = str | Sequence[int]
# An expression or JSON text; coefficients by task; or the JSON form, with `terms` or `method`.
MixLike = str | Mapping[str, Any]

TARGETS = ("mix", "mix_name", "experiment")


class Sampling(TypedDict, total=False):
    """How tokens are chosen. What is absent or None takes the server's default."""

    max_tokens: int | None
    min_tokens: int | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    min_p: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    seed: int | None
    n: int | None
    stop: str | Sequence[str] | None
    ignore_eos: bool | None
    logprobs: bool | None
    prompt_logprobs: bool | None


class Options(Sampling, total=False):
    """The keywords of `generate` and `stream`.

    `messages` is a chat, instead of a prompt. At most one of `mix`, `mix_name` and `experiment`
    chooses the weights; without one the base answers. `experiment` goes with `subject`.
    """

    messages: Sequence[Mapping[str, str]] | None
    mix: MixLike | None
    mix_name: str | None
    experiment: str | None
    subject: str | None
    priority: int | None
    timeout_s: float | None


def to_request(prompt: Prompt | None, options: Options) -> inference_pb2.GenerateRequest:
    """Build the message; anything it cannot say is an InvalidArgumentError."""
    given: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    _check_names(prompt, given)
    try:
        request = inference_pb2.GenerateRequest(
            sampling=_sampling(given), priority=given.get("priority")
        )
        _set_input(request, prompt, given.get("messages"))
        _set_target(request, given)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(str(error)) from error
    return request


def to_mix(mix: MixLike) -> common_pb2.Mix:
    """Build the message of a mix in any of its forms."""
    if isinstance(mix, str):
        return common_pb2.Mix(expression=mix)
    if isinstance(mix.get("terms"), list | tuple) or isinstance(mix.get("method"), str):
        return common_pb2.Mix(expression=_to_json(mix))
    terms = [_to_term(task, coefficient) for task, coefficient in mix.items()]
    return common_pb2.Mix(terms=common_pb2.MixTerms(terms=terms))


def _to_json(mix: Mapping[str, Any]) -> str:
    try:
        return json.dumps(mix)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"the mix is not JSON: {error}") from error


def _to_term(task: str, coefficient: float) -> common_pb2.Term:
    try:
        return common_pb2.Term(task=task, coefficient=coefficient)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{task}: {error}") from error


def _check_names(prompt: Prompt | None, given: Mapping[str, Any]) -> None:
    unknown = given.keys() - Options.__annotations__.keys()
    if unknown:
        raise TypeError(f"unknown keywords: {', '.join(sorted(unknown))}")
    if (prompt is None) == ("messages" not in given):
        raise InvalidArgumentError("give a prompt or messages: one, not both")
    targets = [name for name in TARGETS if name in given]
    if len(targets) > 1:
        raise InvalidArgumentError(f"{' and '.join(targets)} exclude each other: give one")
    if ("experiment" in given) != ("subject" in given):
        raise InvalidArgumentError("experiment and subject go together: give both")


def _sampling(given: Mapping[str, Any]) -> inference_pb2.Sampling:
    sampling = inference_pb2.Sampling()
    for name in Sampling.__annotations__.keys() & given.keys():
        is_one_stop = name == "stop" and isinstance(given[name], str)
        field: dict[str, Any] = {name: [given[name]] if is_one_stop else given[name]}
        try:
            sampling.MergeFrom(inference_pb2.Sampling(**field))
        except (TypeError, ValueError) as error:
            raise InvalidArgumentError(f"{name}: {error}") from error
    return sampling


def _set_input(
    request: inference_pb2.GenerateRequest,
    prompt: Prompt | None,
    messages: Sequence[Mapping[str, str]] | None,
) -> None:
    if isinstance(prompt, str):
        request.prompt = prompt
    elif prompt is not None:
        request.token_ids.CopyFrom(inference_pb2.TokenIds(ids=prompt))
    else:
        chat = [inference_pb2.ChatMessage(**message) for message in messages or ()]
        request.chat.CopyFrom(inference_pb2.ChatMessages(messages=chat))


def _set_target(request: inference_pb2.GenerateRequest, given: Mapping[str, Any]) -> None:
    if "mix" in given:
        request.mix.CopyFrom(to_mix(given["mix"]))
    elif "mix_name" in given:
        request.mix_name = given["mix_name"]
    elif "experiment" in given:
        request.experiment.name = given["experiment"]
        request.experiment.subject = given["subject"]
