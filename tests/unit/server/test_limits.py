"""What one request may bring is bounded alike on both edges, before any work is done for it."""

import asyncio
import json
from typing import Any

import pytest

from taskmix_composer.mix import Mix
from taskmix_server.domain.generation import ChatMessage, GenerationRequest, Prompt, SamplingOptions
from taskmix_server.domain.limits import (
    MAX_COMPLETIONS,
    MAX_JSON_DEPTH,
    MAX_JSON_NESTED,
    MAX_JSON_TEXTS,
    MAX_JSON_VALUES,
    MAX_MESSAGES,
    MAX_PROMPT_CHARACTERS,
    MAX_PROMPT_TOKENS,
    MAX_PROMPTS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
)
from taskmix_server.errors import InvalidRequestError
from taskmix_server.rest.body import parse_body
from taskmix_server.rest.bounds import LOOP_BYTES, bounded_body, check_bounds

TURN = {"role": "user", "content": "x"}
HALF = "x" * (MAX_PROMPT_CHARACTERS // 2)


def nested(depth: int) -> dict[str, Any]:
    """A body of so many objects in each other."""
    body: dict[str, Any] = {}
    for _ in range(depth - 1):
        body = {"x": body}
    return body


@pytest.mark.parametrize(
    "body",
    [
        {},
        nested(MAX_JSON_DEPTH),
        {"n": MAX_COMPLETIONS},
        {"stop": ["x" * MAX_STOP_CHARACTERS] * MAX_STOP_STRINGS},
        {"stop": "x" * MAX_STOP_CHARACTERS},
        {"stop": ""},
        {"stop": 5},
        {"prompt": "x" * MAX_PROMPT_CHARACTERS},
        {"prompt": ["x" * MAX_PROMPT_CHARACTERS] * 2},
        {"prompt": ["x"] * MAX_PROMPTS},
        {"prompt": [1] * MAX_PROMPT_TOKENS},
        {"prompt": [[1], [2]]},
        {"messages": [TURN] * MAX_MESSAGES},
        {"messages": "not a list"},
    ],
    ids=lambda body: repr(body)[:40],
)
def test_bodies_within_the_limits(body: dict[str, Any]) -> None:
    check_bounds(body)


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        (nested(MAX_JSON_DEPTH + 1), MAX_JSON_DEPTH),
        ({"task_mix": [nested(MAX_JSON_DEPTH)]}, MAX_JSON_DEPTH),
        ({"n": MAX_COMPLETIONS + 1}, MAX_COMPLETIONS),
        ({"stop": ["x"] * (MAX_STOP_STRINGS + 1)}, MAX_STOP_STRINGS),
        ({"stop": "x" * (MAX_STOP_CHARACTERS + 1)}, MAX_STOP_CHARACTERS),
        ({"stop": ["x" * (MAX_STOP_CHARACTERS + 1)]}, MAX_STOP_CHARACTERS),
        ({"prompt": "x" * (MAX_PROMPT_CHARACTERS + 1)}, MAX_PROMPT_CHARACTERS),
        ({"prompt": ["x", "x" * (MAX_PROMPT_CHARACTERS + 1)]}, MAX_PROMPT_CHARACTERS),
        ({"prompt": ["x"] * (MAX_PROMPTS + 1)}, MAX_PROMPTS),
        ({"prompt": [1] * (MAX_PROMPT_TOKENS + 1)}, MAX_PROMPT_TOKENS),
        ({"prompt": [[1], [2] * (MAX_PROMPT_TOKENS + 1)]}, MAX_PROMPT_TOKENS),
        ({"messages": [TURN] * (MAX_MESSAGES + 1)}, MAX_MESSAGES),
        ({"messages": [{"content": HALF}, {"content": [{"text": HALF}, TURN]}]}, "characters"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_bodies_over_a_limit(body: dict[str, Any], limit: object) -> None:
    with pytest.raises(InvalidRequestError, match=str(limit)):
        check_bounds(body)


def body_of(value: bytes, count: int) -> bytes:
    """A body with a list of so many equal values."""
    return b'{"":[%s]}' % b",".join([value] * count)


@pytest.mark.parametrize(
    ("value", "most"),
    [
        (b"[]", MAX_JSON_NESTED - 2),
        (b"{}", MAX_JSON_NESTED - 2),
        (b'""', MAX_JSON_TEXTS - 1),
        (b"1", MAX_JSON_VALUES - 1),
    ],
    ids=repr,
)
def test_values_of_a_body(value: bytes, most: int) -> None:
    """Counted before they are made: what would not be JSON is over the limit, too."""
    assert len(parse_body(body_of(value, most))[""]) == most
    with pytest.raises(InvalidRequestError, match="in its body"):
        parse_body(body_of(value, most + 1) + b"}")


@pytest.mark.parametrize(
    "text", ["[{," * MAX_JSON_VALUES, '\\"[' * MAX_JSON_TEXTS, '\\\\"'], ids=len
)
def test_what_texts_hold_is_not_counted(text: str) -> None:
    body = {"prompt": text, "model": ""}
    assert parse_body(json.dumps(body).encode()) == body


@pytest.mark.parametrize("text", [b'"\\\\"', b'"\\""'])
def test_no_text_hides_what_is_behind_it(text: bytes) -> None:
    hidden = b"[]," * MAX_JSON_NESTED
    with pytest.raises(InvalidRequestError, match="lists and objects in its body"):
        parse_body(b'{"x":[%s,%s""]}' % (text, hidden))


async def test_others_are_served_while_a_large_body_is_read() -> None:
    reading = asyncio.create_task(bounded_body(body_of(b"1", LOOP_BYTES)))
    num_turns = 0
    while not reading.done():
        await asyncio.sleep(0)
        num_turns += 1
    assert num_turns > 2
    assert len((await reading)[""]) == LOOP_BYTES


async def test_a_large_body_is_held_to_the_limits() -> None:
    with pytest.raises(InvalidRequestError, match="levels"):
        await bounded_body(body_of(b"[" * MAX_JSON_DEPTH + b"]" * MAX_JSON_DEPTH, 1000))


def requested(prompt: Prompt) -> GenerationRequest:
    return GenerationRequest("id", prompt, Mix())


def test_prompts_within_the_limits() -> None:
    requested("x" * MAX_PROMPT_CHARACTERS)
    requested((1,) * MAX_PROMPT_TOKENS)
    requested((ChatMessage("user", "x"),) * MAX_MESSAGES)


@pytest.mark.parametrize(
    ("prompt", "limit"),
    [
        ("x" * (MAX_PROMPT_CHARACTERS + 1), MAX_PROMPT_CHARACTERS),
        ((1,) * (MAX_PROMPT_TOKENS + 1), MAX_PROMPT_TOKENS),
        ((ChatMessage("user", "x"),) * (MAX_MESSAGES + 1), MAX_MESSAGES),
        ((ChatMessage("user", HALF), ChatMessage("user", HALF)), MAX_PROMPT_CHARACTERS),
    ],
    ids=["text", "tokens", "messages", "conversation"],
)
def test_prompts_over_a_limit(prompt: Prompt, limit: int) -> None:
    with pytest.raises(InvalidRequestError, match=str(limit)):
        requested(prompt)


def test_stop_texts_over_a_limit() -> None:
    SamplingOptions(stop=("x" * MAX_STOP_CHARACTERS,))
    with pytest.raises(InvalidRequestError, match=str(MAX_STOP_CHARACTERS)):
        SamplingOptions(stop=("x" * (MAX_STOP_CHARACTERS + 1),))


@pytest.mark.parametrize("penalty", [-1e300, 10.5, 2**70])
def test_a_penalty_of_lengths_that_no_float_can_hold(penalty: float) -> None:
    with pytest.raises(InvalidRequestError, match=r"length_penalty must be in \[-10, 10\]"):
        check_bounds({"length_penalty": penalty})
    check_bounds({"length_penalty": -10, "use_beam_search": True})
