"""What generate and stream send and how they read the answers, over both clients."""

import json
from typing import Any

import pytest

from taskmix.v1 import inference_pb2 as pb
from taskmix_client import InvalidArgumentError, Usage
from tests.unit.client.scripted import Script

IDENTITY = pb.Identity(
    request_id="r1", mix_digest="d1", mix_json='{"terms":[]}', bank_revision="b1", arm="left"
)
ANSWER = pb.GenerateResponse(
    completions=[
        pb.Completion(
            index=0,
            text=" four",
            token_ids=[7, 8],
            logprobs=[-0.5, -0.25],
            finish_reason=pb.FINISH_REASON_LENGTH,
        ),
        pb.Completion(index=1, text=" 4", token_ids=[9], finish_reason=pb.FINISH_REASON_STOP),
    ],
    usage=pb.Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=4),
    timings=pb.Timings(ttft_s=0.5, total_s=1.5),
    identity=IDENTITY,
    prompt_logprobs=[-1.0],
)


@pytest.fixture
def answering(script: Script) -> Script:
    script.answer("Generate", lambda request, context: ANSWER)
    return script


def test_answer_is_read_whole(client: Any, answering: Script) -> None:
    answer = client.generate("2 + 2 =")

    assert (answer.text, answer.token_ids, answer.logprobs) == (" four", (7, 8), (-0.5, -0.25))
    assert answer.finish_reason == "length"
    assert [completion.text for completion in answer.completions] == [" four", " 4"]
    assert answer.completions[1].finish_reason == "stop"
    assert answer.usage == Usage(prompt_tokens=5, completion_tokens=3, cached_tokens=4)
    assert (answer.timings.ttft_s, answer.timings.total_s) == (0.5, 1.5)
    assert (answer.mix_digest, answer.bank_revision, answer.arm) == ("d1", "b1", "left")
    assert (answer.request_id, answer.mix) == ("r1", '{"terms":[]}')
    assert answer.prompt_logprobs == (-1.0,)


def test_absent_options_stay_absent(client: Any, answering: Script) -> None:
    client.generate("hello")
    assert answering.requests == [pb.GenerateRequest(prompt="hello", sampling=pb.Sampling())]


def test_zero_is_sent_and_not_taken_for_absent(client: Any, answering: Script) -> None:
    client.generate("hello", temperature=0.0, seed=0, priority=0, logprobs=False)
    (sent,) = answering.requests
    for name in ("temperature", "seed", "logprobs"):
        assert sent.sampling.HasField(name), name
    assert sent.HasField("priority")


def test_every_sampling_option_is_sent(client: Any, answering: Script) -> None:
    options = {
        "max_tokens": 16,
        "min_tokens": 2,
        "temperature": 0.5,
        "top_p": 0.25,
        "top_k": 3,
        "min_p": 0.125,
        "presence_penalty": 1.5,
        "frequency_penalty": -1.5,
        "seed": 2**40,
        "n": 2,
        "stop": ["a", "b"],
        "ignore_eos": True,
        "logprobs": True,
        "prompt_logprobs": True,
    }
    assert options.keys() == set(pb.Sampling.DESCRIPTOR.fields_by_name)
    client.generate("hello", **options)
    assert answering.requests[0].sampling == pb.Sampling(**options)


@pytest.mark.parametrize(
    ("arguments", "options", "sent"),
    [
        (("text",), {}, pb.GenerateRequest(prompt="text")),
        (("",), {}, pb.GenerateRequest(prompt="")),
        (([1, 2],), {}, pb.GenerateRequest(token_ids=pb.TokenIds(ids=[1, 2]))),
        (
            (),
            {"messages": [{"role": "user", "content": "hi"}]},
            pb.GenerateRequest(
                chat=pb.ChatMessages(messages=[pb.ChatMessage(role="user", content="hi")])
            ),
        ),
        (("p",), {"mix_name": "prod"}, pb.GenerateRequest(prompt="p", mix_name="prod")),
        (
            ("p",),
            {"experiment": "e", "subject": "s"},
            pb.GenerateRequest(prompt="p", experiment=pb.ExperimentRef(name="e", subject="s")),
        ),
        (("p",), {"priority": -3}, pb.GenerateRequest(prompt="p", priority=-3)),
    ],
    ids=["text", "empty text", "tokens", "chat", "mix name", "experiment", "priority"],
)
def test_inputs_and_targets_are_sent(
    client: Any,
    answering: Script,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    sent: pb.GenerateRequest,
) -> None:
    sent.sampling.SetInParent()
    client.generate(*arguments, **options)
    assert answering.requests == [sent]


def test_one_stop_text_is_a_list_of_one(client: Any, answering: Script) -> None:
    client.generate("p", stop="END")
    assert list(answering.requests[0].sampling.stop) == ["END"]


@pytest.mark.parametrize("mix", ["math:0.6+code:-0.3", '{"terms": []}'])
def test_written_mixes_travel_as_text(client: Any, answering: Script, mix: str) -> None:
    client.generate("p", mix=mix)
    assert answering.requests[0].mix.expression == mix


def test_coefficients_travel_as_terms(client: Any, answering: Script) -> None:
    client.generate("p", mix={"math": 0.1, "terms": -0.3})
    terms = answering.requests[0].mix.terms.terms
    assert [(term.task, term.coefficient) for term in terms] == [("math", 0.1), ("terms", -0.3)]


def test_empty_mapping_is_the_empty_mix(client: Any, answering: Script) -> None:
    client.generate("p", mix={})
    assert answering.requests[0].mix.WhichOneof("form") == "terms"


@pytest.mark.parametrize(
    "mix",
    [
        {"terms": [{"task": "math", "coefficient": 0.1, "layers": {"by_layer": {"0": 0.5}}}]},
        {"method": "metagpt", "tasks": ["math"], "params": {}},
    ],
    ids=["terms", "method"],
)
def test_json_forms_travel_as_json(client: Any, answering: Script, mix: dict[str, Any]) -> None:
    client.generate("p", mix=mix)
    assert json.loads(answering.requests[0].mix.expression) == mix


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((), {}, "prompt or messages"),
        (("p",), {"messages": []}, "prompt or messages"),
        (("p",), {"mix": "a", "mix_name": "b"}, "mix and mix_name exclude"),
        (("p",), {"experiment": "e"}, "go together"),
        (("p",), {"subject": "s"}, "go together"),
        (("p",), {"max_tokens": "many"}, "max_tokens: "),
        (([2**40],), {}, "out of range"),
        ((), {"messages": [{"rôle": "user"}]}, "rôle"),
        (("p",), {"mix": {"math": "much"}}, "math: "),
        (("p",), {"mix": {"terms": [object()]}}, "not JSON"),
        (("p",), {"timeout_s": 0}, "timeout_s must be positive"),
    ],
)
@pytest.mark.parametrize("method", ["generate", "stream"])
def test_what_cannot_be_said_is_refused_before_the_call(
    client: Any,
    answering: Script,
    method: str,
    arguments: tuple[Any, ...],
    options: dict[str, Any],
    message: str,
) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        list(getattr(client, method)(*arguments, **options))
    assert answering.requests == []


def test_unknown_keywords_are_type_errors(client: Any, answering: Script) -> None:
    with pytest.raises(TypeError, match="max_token"):
        client.generate("p", max_token=3)


def _stream(*responses: pb.StreamGenerateResponse) -> Any:
    return lambda request, context: iter(responses)


def test_stream_sends_the_same_request(client: Any, script: Script) -> None:
    script.answer("StreamGenerate", _stream())
    assert list(client.stream("p", mix="math", max_tokens=4)) == []
    script.answer("Generate", lambda request, context: ANSWER)
    client.generate("p", mix="math", max_tokens=4)
    assert script.requests[0].request == script.requests[1]


def test_stream_tells_identity_in_every_chunk_and_counts_in_the_last(
    client: Any, script: Script
) -> None:
    script.answer(
        "StreamGenerate",
        _stream(
            pb.StreamGenerateResponse(
                completions=[pb.Completion(text="a", token_ids=[1], logprobs=[-0.5])],
                identity=IDENTITY,
            ),
            pb.StreamGenerateResponse(
                completions=[
                    pb.Completion(text="b", token_ids=[2], finish_reason=pb.FINISH_REASON_STOP),
                    pb.Completion(index=1, text="c", finish_reason=pb.FINISH_REASON_LENGTH),
                ],
                usage=pb.Usage(completion_tokens=3),
                timings=pb.Timings(total_s=2.0),
            ),
        ),
    )
    chunks = list(client.stream("p", n=2))

    assert [(c.index, c.text, c.finish_reason) for c in chunks] == [
        (0, "a", None),
        (0, "b", "stop"),
        (1, "c", "length"),
    ]
    assert chunks[0].token_ids == (1,)
    assert chunks[0].logprobs == (-0.5,)
    assert {(c.mix_digest, c.bank_revision, c.arm, c.request_id) for c in chunks} == {
        ("d1", "b1", "left", "r1")
    }
    assert [c.usage for c in chunks[:2]] == [None, None]
    assert chunks[2].usage == Usage(0, 3, 0)
    assert chunks[2].timings.total_s == 2.0


def test_counts_without_text_still_arrive(client: Any, script: Script) -> None:
    script.answer(
        "StreamGenerate", _stream(pb.StreamGenerateResponse(usage=pb.Usage(prompt_tokens=1)))
    )
    (chunk,) = client.stream("p")
    assert (chunk.text, chunk.usage) == ("", Usage(1, 0, 0))
