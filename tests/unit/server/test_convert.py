"""Messages to domain values and back."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from taskmix.v1 import bank_pb2, common_pb2, inference_pb2
from taskmix_composer.errors import InvalidMixError
from taskmix_composer.mix import Mix
from taskmix_composer.mix.mixture import MAX_TERMS
from taskmix_composer.mix.term import MAX_OVERRIDES
from taskmix_server.domain.generation import (
    ChatMessage,
    Completion,
    ExperimentTarget,
    FinishReason,
    Generation,
    GenerationChunk,
    Identity,
    NamedMix,
    SamplingOptions,
    Timings,
    Usage,
)
from taskmix_server.domain.limits import (
    MAX_MASKS,
    MAX_MESSAGES,
    MAX_PROMPT_TOKENS,
    MAX_STOP_STRINGS,
)
from taskmix_server.errors import InvalidRequestError
from taskmix_server.rpc import convert
from taskmix_server.runtime.statuses import TaskState, TaskStatus

COMPLETION = Completion(1, "text", (5, 6), (-0.5, -1.5), FinishReason.STOP)
IDENTITY = Identity("id", "digest", "{}", "revision", "arm")
USAGE = Usage(7, 2, 3)
TIMINGS = Timings(0.25, 0.5)


def request(**fields: object) -> inference_pb2.GenerateRequest:
    return inference_pb2.GenerateRequest(**{"prompt": "p", **fields})


def test_the_smallest_request() -> None:
    read = convert.to_request(request(), "id")
    assert (read.request_id, read.prompt, read.target) == ("id", "p", Mix())
    assert read.sampling == SamplingOptions()
    assert read.priority == 0


def test_every_sampling_option_arrives() -> None:
    options = SamplingOptions(
        max_tokens=9,
        min_tokens=2,
        temperature=0.5,
        top_p=0.25,
        top_k=4,
        min_p=0.125,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        seed=-3,
        n=2,
        stop=("x", "y"),
        ignore_eos=True,
        logprobs=True,
        prompt_logprobs=True,
    )
    defaults = SamplingOptions()
    fields = dataclasses.asdict(options)
    assert all(value != getattr(defaults, name) for name, value in fields.items())
    assert convert.to_sampling(inference_pb2.Sampling(**fields)) == options


def test_zero_is_not_absent() -> None:
    assert convert.to_sampling(inference_pb2.Sampling(temperature=0.0)).temperature == 0.0
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        convert.to_sampling(inference_pb2.Sampling(max_tokens=0))


def test_inputs() -> None:
    tokens = inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[1, 2]))
    assert convert.to_request(tokens, "id").prompt == (1, 2)
    turns = [inference_pb2.ChatMessage(role="user", content="hi")]
    chat = inference_pb2.GenerateRequest(chat=inference_pb2.ChatMessages(messages=turns))
    assert convert.to_request(chat, "id").prompt == (ChatMessage("user", "hi"),)


@pytest.mark.parametrize(
    "empty",
    [
        inference_pb2.GenerateRequest(),
        inference_pb2.GenerateRequest(prompt=""),
        inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds()),
        inference_pb2.GenerateRequest(chat=inference_pb2.ChatMessages()),
    ],
    ids=["none", "prompt", "token_ids", "chat"],
)
def test_no_input(empty: inference_pb2.GenerateRequest) -> None:
    with pytest.raises(InvalidRequestError, match="set prompt, token_ids or chat"):
        convert.to_request(empty, "id")


class TooMany:
    """Of something: it can be counted, and must not be looked at."""

    def __len__(self) -> int:
        return 2**24


TOO_MANY = TooMany()


@pytest.mark.parametrize(
    ("kind", "field", "limit"),
    [("token_ids", "ids", MAX_PROMPT_TOKENS), ("chat", "messages", MAX_MESSAGES)],
)
def test_inputs_are_counted_before_they_are_read(kind: str, field: str, limit: int) -> None:
    message: Any = SimpleNamespace(WhichOneof=lambda oneof: kind)
    setattr(message, kind, SimpleNamespace(**{field: TOO_MANY}))
    with pytest.raises(InvalidRequestError, match=f"at most {limit} "):
        convert.to_request(message, "id")


def test_stop_texts_are_counted_before_they_are_read() -> None:
    message: Any = SimpleNamespace(stop=TOO_MANY)
    with pytest.raises(InvalidRequestError, match=f"at most {MAX_STOP_STRINGS} "):
        convert.to_sampling(message)


def mix_of(**fields: Any) -> Any:
    """A message of a mix with one term, of these fields."""
    scales = SimpleNamespace(**{"by_layer": (), "by_tensor": (), **fields})
    term = SimpleNamespace(
        **{"task": "a", "coefficient": 1.0, "masks": (), **fields},
        HasField=lambda name: True,
        layers=scales,
    )
    terms = SimpleNamespace(terms=fields.get("terms", [term]))
    return SimpleNamespace(HasField=lambda name: True, terms=terms)


@pytest.mark.parametrize(
    ("field", "limit"),
    [
        ("terms", MAX_TERMS),
        ("masks", MAX_MASKS),
        ("by_layer", MAX_OVERRIDES),
        ("by_tensor", MAX_OVERRIDES),
    ],
)
def test_parts_of_a_mix_are_counted_before_they_are_read(field: str, limit: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"at most {limit} "):
        convert.to_mix(mix_of(**{field: TOO_MANY}))


def test_targets() -> None:
    assert convert.to_request(request(mix_name="prod"), "id").target == NamedMix("prod")
    experiment = inference_pb2.ExperimentRef(name="split", subject="someone")
    target = convert.to_request(request(experiment=experiment), "id").target
    assert target == ExperimentTarget("split", "someone")
    mix = common_pb2.Mix(expression="a:0.5+b")
    assert convert.to_request(request(mix=mix), "id").target == Mix.of({"a": 0.5, "b": 1.0})


def test_a_mix_term_by_term() -> None:
    scales = common_pb2.LayerScales(by_layer={0: 0.5}, by_tensor={"t": 2.0})
    layered = common_pb2.Term(task="a", coefficient=0.6, layers=scales, masks=["p.a", "!p.b"])
    plain = common_pb2.Term(task="b", coefficient=-1.0)
    mix = convert.to_mix(common_pb2.Mix(terms=common_pb2.MixTerms(terms=[layered, plain])))
    expected = {
        "terms": [
            {
                "task": "a",
                "coefficient": 0.6,
                "layers": {"by_layer": {"0": 0.5}, "by_tensor": {"t": 2.0}},
                "masks": ["p.a", "!p.b"],
            },
            {"task": "b", "coefficient": -1.0},
        ]
    }
    assert mix == Mix.from_json(expected)


def test_a_default_scale_of_zero_is_not_absent() -> None:
    scales = common_pb2.LayerScales(default=0.0, by_layer={3: 1.0})
    term = common_pb2.Term(task="a", coefficient=1.0, layers=scales)
    mix = convert.to_mix(common_pb2.Mix(terms=common_pb2.MixTerms(terms=[term])))
    assert mix.terms[0].coefficient_for("model.layers.2.mlp.up_proj.weight") == 0.0
    assert mix.terms[0].coefficient_for("model.layers.3.mlp.up_proj.weight") == 1.0


def test_mixes_without_form_or_terms_are_the_base() -> None:
    assert convert.to_mix(common_pb2.Mix()).is_base
    assert convert.to_mix(common_pb2.Mix(terms=common_pb2.MixTerms())).is_base
    with pytest.raises(InvalidMixError):
        convert.to_mix(common_pb2.Mix(expression=""))


def test_answers() -> None:
    response = convert.to_generate_response(
        Generation((COMPLETION,), (-0.25,), USAGE, TIMINGS, IDENTITY)
    )
    (completion,) = response.completions
    assert (completion.index, completion.text) == (1, "text")
    assert list(completion.token_ids) == [5, 6]
    assert list(completion.logprobs) == [-0.5, -1.5]
    assert completion.finish_reason == inference_pb2.FINISH_REASON_STOP
    assert list(response.prompt_logprobs) == [-0.25]
    assert response.usage == inference_pb2.Usage(
        prompt_tokens=7, completion_tokens=2, cached_tokens=3
    )
    assert response.timings == inference_pb2.Timings(ttft_s=0.25, total_s=0.5)
    assert response.identity == inference_pb2.Identity(
        request_id="id", mix_digest="digest", mix_json="{}", bank_revision="revision", arm="arm"
    )


def test_pieces_say_only_what_they_know() -> None:
    bare = convert.to_stream_response(GenerationChunk((COMPLETION,)))
    assert not any(bare.HasField(name) for name in ("identity", "usage", "timings"))
    full = convert.to_stream_response(GenerationChunk((COMPLETION,), (), IDENTITY, USAGE, TIMINGS))
    assert all(full.HasField(name) for name in ("identity", "usage", "timings"))


@pytest.mark.parametrize("state", TaskState)
def test_tasks(state: TaskState) -> None:
    status = TaskStatus("law", "int4", 9, 100, "d", state, 2, is_served=True)
    info = convert.to_task_info(status)
    assert (info.name, info.scheme, info.bytes, info.digest) == ("law", "int4", 9, "d")
    assert bank_pb2.TaskState.Name(info.state) == f"TASK_STATE_{state.name}"
    assert info.references == 2
