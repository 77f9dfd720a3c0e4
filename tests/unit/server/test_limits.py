"""What one request may bring is bounded alike on both edges, before any work is done for it."""

from typing import Any

import pytest

from taskmix_composer.mix import Mix
from taskmix_server.domain.generation import ChatMessage, GenerationRequest, Prompt, SamplingOptions
from taskmix_server.domain.limits import (
    MAX_COMPLETIONS,
    MAX_JSON_DEPTH,
    MAX_MESSAGES,
    MAX_PROMPT_CHARACTERS,
    MAX_PROMPT_TOKENS,
    MAX_PROMPTS,
    MAX_STOP_CHARACTERS,
    MAX_STOP_STRINGS,
)
from taskmix_server.errors import InvalidRequestError
from taskmix_server.rest.bounds import check_bounds

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
