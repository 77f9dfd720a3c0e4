"""Both edges give the same answers and say the same about what answered."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from taskmix_client import Answer, Client, InvalidArgumentError

PROMPT = "The quick brown fox jumps over the lazy dog"
MIXES = ("base", "a", "a:0.7+b:0.3", "c:-1.5+a:0.25")
TURNS = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hello"}]
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 12}
SCALED = {
    "terms": [
        {"task": "a", "coefficient": 0.5, "layers": {"default": 1.0, "by_layer": {"1": -2.0}}},
        {"task": "b", "coefficient": 2.0},
    ]
}


def complete(http: httpx.Client, **body: Any) -> httpx.Response:
    """A greedy completion that carries its token ids."""
    request = {"prompt": PROMPT, "return_token_ids": True, **GREEDY, **body}
    response = http.post("/v1/completions", json=request)
    assert response.status_code == 200, response.text
    return response


def choice(response: httpx.Response) -> dict[str, Any]:
    return dict(response.json()["choices"][0])


def assert_same(answer: Answer, response: httpx.Response) -> None:
    """The same tokens, from the same mix of the same bank."""
    assert tuple(choice(response)["token_ids"]) == answer.token_ids
    assert response.headers["x-taskmix-digest"] == answer.mix_digest
    assert response.headers["x-taskmix-bank"] == answer.bank_revision
    assert "x-taskmix-arm" not in response.headers


def events(http: httpx.Client, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The chunks of a stream, up to its end mark; headers are checked by the caller's digest."""
    with http.stream("POST", path, json={**GREEDY, **body, "stream": True}) as response:
        assert response.status_code == 200
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
        assert lines.pop() == "[DONE]"
        for line in lines:
            yield {**json.loads(line), "digest": response.headers["x-taskmix-digest"]}


@pytest.mark.parametrize("mix", MIXES)
def test_completions(client: Client, http: httpx.Client, mix: str) -> None:
    answer = client.generate(PROMPT, mix=mix, **GREEDY)
    response = complete(http, model=mix)
    assert_same(answer, response)
    assert response.json()["model"] == mix
    assert response.json()["usage"]["prompt_tokens"] == answer.usage.prompt_tokens == len(PROMPT)
    assert answer.usage.completion_tokens == len(answer.token_ids)
    assert choice(response)["text"] == answer.text
    assert choice(response)["finish_reason"] == answer.finish_reason


def test_mixes_differ(client: Client) -> None:
    answers = [client.generate(PROMPT, mix=mix, **GREEDY) for mix in MIXES]
    assert len({answer.token_ids for answer in answers}) == len(MIXES)
    assert len({answer.mix_digest for answer in answers}) == len(MIXES)
    assert len({answer.bank_revision for answer in answers}) == 1


@pytest.mark.parametrize("mix", MIXES)
def test_streams(client: Client, http: httpx.Client, mix: str) -> None:
    whole = client.generate(PROMPT, mix=mix, **GREEDY)
    chunks = list(client.stream(PROMPT, mix=mix, **GREEDY))
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == whole.token_ids
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert {chunk.mix_digest for chunk in chunks} == {whole.mix_digest}
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].finish_reason == whole.finish_reason

    body = {"model": mix, "prompt": PROMPT, "return_token_ids": True}
    pieces = list(events(http, "/v1/completions", body))
    tokens = [token for piece in pieces for token in piece["choices"][0]["token_ids"]]
    assert tuple(tokens) == whole.token_ids
    assert {piece["model"] for piece in pieces} == {mix}
    assert {piece["digest"] for piece in pieces} == {whole.mix_digest}


@pytest.mark.parametrize("mix", MIXES)
def test_chat(client: Client, http: httpx.Client, mix: str) -> None:
    answer = client.generate(messages=TURNS, mix=mix, **GREEDY)
    body = {"model": mix, "messages": TURNS, "return_token_ids": True, **GREEDY}
    response = http.post("/v1/chat/completions", json=body)
    assert_same(answer, response)
    assert response.json()["model"] == mix
    assert response.json()["usage"]["prompt_tokens"] == answer.usage.prompt_tokens
    assert choice(response)["message"]["content"] == answer.text

    pieces = list(events(http, "/v1/chat/completions", body))
    texts = [piece["choices"][0]["delta"].get("content") or "" for piece in pieces]
    assert "".join(texts) == answer.text
    assert {piece["model"] for piece in pieces} == {mix}
    assert {piece["digest"] for piece in pieces} == {answer.mix_digest}
    chunks = list(client.stream(messages=TURNS, mix=mix, **GREEDY))
    assert tuple(token for chunk in chunks for token in chunk.token_ids) == answer.token_ids


def test_token_ids_stand_for_the_text(client: Client, http: httpx.Client) -> None:
    response = complete(http, model="a")
    ids = choice(response)["prompt_token_ids"]
    assert len(ids) == len(PROMPT)
    answer = client.generate(ids, mix="a", **GREEDY)
    assert_same(answer, response)
    assert_same(answer, complete(http, model="a", prompt=ids))


def test_every_way_to_name_the_base(client: Client, http: httpx.Client) -> None:
    answer = client.generate(PROMPT, **GREEDY)
    bodies: list[dict[str, Any]] = [
        *({}, {"model": "tiny-base"}, {"model": "base"}, {"model": "a:0"}),
        *({"task_mix": {"terms": []}}, {"model": "a", "task_mix": {"terms": []}}),
    ]
    for body in bodies:
        response = complete(http, **body)
        assert_same(answer, response)
        assert response.json()["model"] == body.get("model", "tiny-base")


def test_every_way_to_name_a_mix(client: Client, http: httpx.Client) -> None:
    answer = client.generate(PROMPT, mix=SCALED, **GREEDY)
    client.register_mix("scaled", answer.mix)
    try:
        assert client.generate(PROMPT, mix_name="scaled", **GREEDY).token_ids == answer.token_ids
        assert client.generate(PROMPT, mix=answer.mix, **GREEDY).mix_digest == answer.mix_digest
        assert_same(answer, complete(http, model="scaled"))
        assert_same(answer, complete(http, model=json.dumps(SCALED)))
        response = complete(http, model="whatever", task_mix=SCALED)
        assert_same(answer, response)
        assert response.json()["model"] == "whatever"
    finally:
        client.delete_mix("scaled")


def test_masks_are_served(client: Client, http: httpx.Client) -> None:
    terms = [
        {"task": "a", "coefficient": 0.8, "masks": ["ties.a"]},
        {"task": "b", "coefficient": -0.5, "masks": ["!ties.b"]},
    ]
    answer = client.generate(PROMPT, mix={"terms": terms}, **GREEDY)
    assert_same(answer, complete(http, task_mix={"terms": terms}))
    unmasked = client.generate(PROMPT, mix="a:0.8+b:-0.5", **GREEDY)
    assert unmasked.mix_digest != answer.mix_digest
    metrics = http.get("/metrics").text
    assert metric(metrics, "taskmix_plane_bytes") > 0
    assert metric(metrics, "taskmix_resident_bytes") > 0
    with pytest.raises(InvalidArgumentError, match="elected for the tasks a, b and this mix"):
        client.generate(PROMPT, mix={"terms": terms[:1]}, **GREEDY)


def metric(text: str, name: str) -> float:
    """The value of a gauge without labels."""
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


@pytest.mark.parametrize("method", ["lines", "metagpt", "norm-scaled", "slerp"])
def test_a_method_is_answered_as_terms(client: Client, http: httpx.Client, method: str) -> None:
    mix = {"method": method, "tasks": ["a", "b"], "params": {}}
    answer = client.generate(PROMPT, mix=mix, **GREEDY)
    assert [term["task"] for term in json.loads(answer.mix)["terms"]] == ["a", "b"]
    assert_same(answer, complete(http, task_mix=mix))
    assert_same(answer, complete(http, model=json.dumps(mix)))
    terms = client.generate(PROMPT, mix=answer.mix, **GREEDY)
    assert (terms.mix_digest, terms.token_ids) == (answer.mix_digest, answer.token_ids)
    named = client.register_mix("by-method", mix)
    try:
        assert (named.mix, named.mix_digest) == (answer.mix, answer.mix_digest)
        assert_same(answer, complete(http, model="by-method"))
    finally:
        client.delete_mix("by-method")


def test_equal_mixes_have_one_digest(client: Client, http: httpx.Client) -> None:
    answer = client.generate(PROMPT, mix={"b": 0.5, "a": 1.0}, **GREEDY)
    assert_same(answer, complete(http, model=" a:0.25 + b:.5 + a:0.75 "))


def test_log_probabilities(client: Client, http: httpx.Client) -> None:
    answer = client.generate(PROMPT, mix="a", logprobs=True, **GREEDY)
    served = choice(complete(http, model="a", logprobs=0))["logprobs"]["token_logprobs"]
    assert answer.logprobs == pytest.approx(served, abs=1e-4)
    assert len(answer.logprobs) == len(answer.token_ids)
    assert all(value <= 0.0 for value in answer.logprobs)


def test_sampling_options_reach_the_engine(client: Client) -> None:
    options: dict[str, Any] = {"mix": "a", "temperature": 1.0, "max_tokens": 8, "seed": 7, "n": 3}
    first = client.generate(PROMPT, ignore_eos=True, **options)
    again = client.generate(PROMPT, ignore_eos=True, **options)
    assert [len(completion.token_ids) for completion in first.completions] == [8, 8, 8]
    assert len({completion.token_ids for completion in first.completions}) == 3
    assert first.completions == again.completions
    assert first.usage.completion_tokens == 24
    assert first.finish_reason == "length"


def test_a_stop_text_ends_the_answer(client: Client) -> None:
    whole = client.generate(PROMPT, mix="a", temperature=0.0, max_tokens=12, ignore_eos=True)
    stop = whole.text[4:6]
    cut = client.generate(PROMPT, mix="a", temperature=0.0, max_tokens=12, stop=stop)
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"


def test_only_the_server_chooses_the_salt(client: Client, http: httpx.Client) -> None:
    prompt = "a prompt of more than one block that no other test sends"
    for salt in ("mine", ""):
        complete(http, prompt=prompt, model="a", cache_salt=salt, priority=-7)
    assert client.generate(prompt, mix="a", **GREEDY).usage.cached_tokens > 0
