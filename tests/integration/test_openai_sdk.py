"""OpenAI's own SDK against the HTTP edge."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest

from taskmix_client import Client
from tests.support.served import Served


@pytest.fixture
def sdk(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


def test_completions_and_chat(sdk: openai.OpenAI, client: Client) -> None:
    answer = client.generate("Hello", mix="a:0.7+b:0.3", max_tokens=8, temperature=0.0)
    completion = sdk.completions.create(
        model="a:0.7+b:0.3", prompt="Hello", max_tokens=8, temperature=0.0
    )
    assert completion.choices[0].text == answer.text
    assert completion.model == "a:0.7+b:0.3"
    turns = [{"role": "user", "content": "Hello"}]
    talk = client.generate(messages=turns, mix="b", max_tokens=8, temperature=0.0)
    chat = sdk.chat.completions.create(
        model="b", messages=[{"role": "user", "content": "Hello"}], max_tokens=8, temperature=0.0
    )
    assert chat.choices[0].message.content == talk.text


def test_streams(sdk: openai.OpenAI, client: Client) -> None:
    answer = client.generate("Hello", mix="c", max_tokens=8, temperature=0.0)
    stream = sdk.completions.create(
        model="c", prompt="Hello", max_tokens=8, temperature=0.0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == answer.text


def test_the_structured_mix_and_its_headers(sdk: openai.OpenAI, client: Client) -> None:
    mix = {"terms": [{"task": "a", "coefficient": 0.5}]}
    answer = client.generate("Hello", mix=mix, max_tokens=8, temperature=0.0)
    raw = sdk.completions.with_raw_response.create(
        model="base",
        prompt="Hello",
        max_tokens=8,
        temperature=0.0,
        extra_body={"task_mix": mix},
    )
    assert raw.parse().choices[0].text == answer.text
    assert raw.headers["x-taskmix-digest"] == answer.mix_digest


def test_a_grammar_holds_beside_a_request_without_one(sdk: openai.OpenAI) -> None:
    def ask(**structured: object) -> str:
        answer = sdk.completions.create(
            model="a:0.5+b:0.5",
            prompt="Hello",
            max_tokens=8,
            temperature=0.0,
            extra_body=structured,
        )
        return answer.choices[0].text

    with ThreadPoolExecutor() as pool:
        choice = pool.submit(ask, structured_outputs={"choice": ["yes", "no"]})
        free = pool.submit(ask)
    assert choice.result() in ("yes", "no")
    assert free.result() not in ("yes", "no")


def test_models(sdk: openai.OpenAI, client: Client) -> None:
    client.register_mix("prod", "a:0.6+b:0.4")
    try:
        assert [model.id for model in sdk.models.list()] == ["tiny-base", "prod", "a", "b", "c"]
    finally:
        client.delete_mix("prod")


def test_refusals_are_the_sdks_own_errors(sdk: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="nothing"):
        sdk.completions.create(model="nothing", prompt="Hello")
    with pytest.raises(openai.BadRequestError, match="expected a number"):
        sdk.completions.create(model="a:x", prompt="Hello")
