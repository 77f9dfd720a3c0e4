"""Every refusal, over both edges; after each of them the server still answers."""

import json
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

import taskmix_client as tm
from taskmix.v1 import common_pb2, inference_pb2, inference_pb2_grpc
from taskmix_client import Client
from tests.support.served import Served, metrics
from tests.support.waiting import eventually

PROMPT = "Hello"
LONG = "x" * 600  # the model takes 512
MASKED = '{"terms": [{"task": "a", "masks": ["tall.a"]}]}'


@pytest.fixture(autouse=True)
def still_answers(client: Client) -> Iterator[None]:
    """The same answer before and after."""
    before = client.generate(PROMPT, mix="a", max_tokens=4, temperature=0.0)
    yield
    after = client.generate(PROMPT, mix="a", max_tokens=4, temperature=0.0)
    assert after.completions == before.completions


def refused(http: httpx.Client, body: Any, path: str = "/v1/completions") -> tuple[int, str]:
    """Status and message of a refusal; `body` may be raw text."""
    raw = body if isinstance(body, str | bytes) else json.dumps(body)
    headers = {"content-type": "application/json"}
    response = http.post(path, content=raw, headers=headers)
    error = response.json()["error"]
    assert error["code"] == response.status_code
    assert "Traceback" not in error["message"]
    return response.status_code, error["message"]


@pytest.mark.parametrize(
    ("mix", "error", "status", "message"),
    [
        ("a:", tm.InvalidArgumentError, 400, "expected a number"),
        ("a:0.5 b", tm.InvalidArgumentError, 400, r"expected '\+'"),
        ("A", tm.InvalidArgumentError, 400, "expected a task name"),
        ("a:1e999", tm.InvalidArgumentError, 400, "finite"),
        ("a:nan", tm.InvalidArgumentError, 400, "expected a number"),
        ('{"terms": 5}', tm.InvalidArgumentError, 400, "must be a JSON list"),
        ('{"method": "ties", "tasks": ["a"]}', tm.InvalidArgumentError, 400, "bank merge"),
        (
            '{"method": "lines", "tasks": ["a"], "params": []}',
            tm.InvalidArgumentError,
            400,
            "params must be",
        ),
        ('{"method": "average", "tasks": ["a", "law"]}', tm.NotFoundError, 404, "'law'"),
        ("{", tm.InvalidArgumentError, 400, "not valid JSON"),
        (MASKED, tm.InvalidArgumentError, 400, "tall.a"),
        ("nothing:0.5+a", tm.NotFoundError, 404, "'nothing' is not served.*a, b, c"),
    ],
)
def test_mixes(
    client: Client, http: httpx.Client, mix: str, error: type, status: int, message: str
) -> None:
    with pytest.raises(error, match=message):
        client.generate(PROMPT, mix=mix)
    with pytest.raises(error, match=message):
        list(client.stream(PROMPT, mix=mix))
    with pytest.raises(error, match=message):
        client.register_mix("refused", mix)
    for path, prompt in (
        ("/v1/completions", {"prompt": PROMPT}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": PROMPT}]}),
    ):
        answered, text = refused(http, {"model": mix, **prompt}, path)
        assert answered == status
        with pytest.raises(error, match=message):
            raise error(text)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite(served: Served, http: httpx.Client, number: str) -> None:
    body = f'{{"prompt": "x", "task_mix": {{"terms": [{{"task": "a", "coefficient": {number}}}]}}}}'
    assert refused(http, body)[0] == 400
    assert refused(http, f'{{"prompt": "x", "temperature": {number}}}')[0] == 400
    value = float(number.replace("Infinity", "inf"))
    term = common_pb2.Term(task="a", coefficient=value)
    requests = (
        inference_pb2.GenerateRequest(
            prompt="x", mix=common_pb2.Mix(terms=common_pb2.MixTerms(terms=[term]))
        ),
        inference_pb2.GenerateRequest(
            prompt="x", sampling=inference_pb2.Sampling(temperature=value)
        ),
    )
    for request in requests:
        code, details = rpc_status(served, request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "finite" in details


def test_names_that_nobody_registered(client: Client, http: httpx.Client) -> None:
    with pytest.raises(tm.NotFoundError, match="no mix is registered as 'prod'"):
        client.generate(PROMPT, mix_name="prod")
    with pytest.raises(tm.NotFoundError, match="no mix is registered as 'prod'"):
        client.delete_mix("prod")
    assert refused(http, {"model": "prod", "prompt": PROMPT})[0] == 404
    with pytest.raises(tm.NotFoundError, match="no experiment is named 'split'"):
        client.generate(PROMPT, experiment="split", subject="someone")
    status, text = refused(http, {"model": "experiment:split", "prompt": PROMPT, "user": "u"})
    assert status == 404
    assert text.startswith("no experiment is named 'split'")
    with pytest.raises(tm.NotFoundError, match="'law'"):
        client.load_task("law")
    with pytest.raises(tm.NotFoundError, match="'law'"):
        client.unload_task("law")


def test_a_taken_name(client: Client) -> None:
    client.register_mix("taken", "a:0.6+b:0.4")
    client.register_mix("taken", "b:0.4+a:0.6")
    with pytest.raises(tm.AlreadyExistsError, match=r"exists as a:0.6\+b:0.4; delete it first"):
        client.register_mix("taken", "a")
    assert [mix.name for mix in client.mixes()] == ["taken"]
    client.delete_mix("taken")
    with pytest.raises(tm.InvalidArgumentError, match="base"):
        client.register_mix("base", "a")


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 4, "min_tokens": 5}, "min_tokens"),
        ({"temperature": -0.5}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"top_k": -2}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"presence_penalty": 9.0}, "presence_penalty"),
    ],
    ids=str,
)
def test_sampling_out_of_range(
    client: Client, http: httpx.Client, sampling: dict[str, Any], field: str
) -> None:
    with pytest.raises(tm.InvalidArgumentError, match=field):
        client.generate(PROMPT, mix="a", **sampling)
    status, text = refused(http, {"model": "a", "prompt": PROMPT, **sampling})
    assert status == 400
    assert field in text


def test_prompts_that_the_model_cannot_take(served: Served, http: httpx.Client) -> None:
    ids = inference_pb2.TokenIds
    turn = inference_pb2.ChatMessage(role="user", content=LONG)
    requests = {
        "no input": inference_pb2.GenerateRequest(),
        "no input: set": inference_pb2.GenerateRequest(prompt=""),
        "has no input": inference_pb2.GenerateRequest(token_ids=ids()),
        "the request has no": inference_pb2.GenerateRequest(chat=inference_pb2.ChatMessages()),
        "512": inference_pb2.GenerateRequest(prompt=LONG),
        "maximum context length": inference_pb2.GenerateRequest(
            chat=inference_pb2.ChatMessages(messages=[turn])
        ),
        "out of vocabulary": inference_pb2.GenerateRequest(token_ids=ids(ids=[5, 320])),
        "-1 is out of vocabulary": inference_pb2.GenerateRequest(token_ids=ids(ids=[5, -1])),
    }
    for message, request in requests.items():
        code, details = rpc_status(served, request)
        assert code is grpc.StatusCode.INVALID_ARGUMENT, details
        assert message in details
    for prompt in ("", [], LONG, [5, 320], [5, -1], 7, {"a": 1}, "\ud800"):
        assert refused(http, {"model": "a", "prompt": prompt, "max_tokens": 1})[0] == 400, prompt
    chat = {"model": "a", "messages": [{"role": "user", "content": LONG}]}
    assert refused(http, chat, "/v1/chat/completions")[0] == 400


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("", 400),
        ("{", 400),
        ("[]", 400),
        ('"text"', 400),
        ("null", 400),
        (b"\xff\xfe", 400),
        ("[" * 100_000, 400),
        ('{"prompt": "x", "task_mix": "a"}', 400),
        ('{"prompt": "x", "task_mix": {"terms": [{"task": "a", "weight": 1}]}}', 400),
        ('{"prompt": "x", "model": 5}', 400),
        ('{"prompt": "x", "model": ["a"]}', 400),
        ('{"prompt": "x", "model": {"terms": []}}', 400),
        ('{"model": "a"}', 400),
        ('{"prompt": "x", "seed": 1e30}', 400),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_bodies(http: httpx.Client, body: str | bytes, status: int) -> None:
    assert refused(http, body)[0] == status


def test_messages_that_are_too_large(served: Served, http: httpx.Client) -> None:
    text = "x" * (17 * 2**20)
    status, message = refused(http, {"prompt": text})
    assert (status, "bytes" in message) == (400, True)
    code, _ = rpc_status(served, inference_pb2.GenerateRequest(prompt=text))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_prompt_log_probabilities_under_a_changed_head(client: Client, http: httpx.Client) -> None:
    with pytest.raises(tm.InvalidArgumentError, match="output head"):
        client.generate(PROMPT, mix="a", prompt_logprobs=True)
    chat = {"messages": [{"role": "user", "content": PROMPT}], "prompt_logprobs": 0}
    assert refused(http, {"model": "a", **chat}, "/v1/chat/completions")[0] == 400
    for asked in ({"prompt_logprobs": 0}, {"echo": True, "logprobs": 0}):
        status, text = refused(http, {"model": "c+a:0.1", "prompt": PROMPT, **asked})
        assert status == 400
        assert "output head" in text


@pytest.mark.parametrize("mix", ["base", "c"])
def test_prompt_log_probabilities_under_the_bases_head(
    client: Client, http: httpx.Client, mix: str
) -> None:
    answer = client.generate(PROMPT, mix=mix, prompt_logprobs=True, max_tokens=1)
    assert len(answer.prompt_logprobs) == len(PROMPT) - 1
    body = {"model": mix, "prompt": PROMPT, "echo": True, "logprobs": 0, "max_tokens": 1}
    response = http.post("/v1/completions", json=body)
    echoed = response.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert answer.prompt_logprobs == pytest.approx(echoed[1 : len(PROMPT)], abs=1e-4)


def test_a_deadline_stops_the_answer(client: Client, served: Served) -> None:
    with served.frozen():
        with pytest.raises(tm.DeadlineExceededError):
            client.generate(PROMPT, mix="a", timeout_s=0.5)
        with pytest.raises(tm.DeadlineExceededError):
            list(client.stream(PROMPT, mix="a", timeout_s=0.5))
        eventually(lambda: metrics(served.http)["taskmix_task_references"] == 0.0)


def test_a_request_counts_by_its_outcome(
    client: Client, http: httpx.Client, served: Served
) -> None:
    name = 'taskmix_requests_total{edge="%s",outcome="refused",reason="invalid",tenant="default"}'
    seen = metrics(served.http)
    with pytest.raises(tm.InvalidArgumentError):
        client.generate(PROMPT, mix="a:")
    refused(http, {"model": "a:", "prompt": PROMPT})
    now = metrics(served.http)
    for edge in ("grpc", "http"):
        key = name % edge
        assert now[key] == seen.get(key, 0.0) + 1.0


def rpc_status(
    served: Served, request: inference_pb2.GenerateRequest
) -> tuple[grpc.StatusCode, str]:
    """How the server refuses a message that a client of ours would not send."""
    with grpc.insecure_channel(served.grpc) as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Generate(request, timeout=60)
    call: Any = caught.value
    return call.code(), call.details()
