"""A body of OpenAI's held to the server's limits, before vLLM's app sees it."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from taskmix_server.domain.limits import (
    MAX_COMPLETIONS,
    MAX_JSON_DEPTH,
    MAX_LENGTH_PENALTY,
    MAX_MESSAGES,
    MAX_PROMPT_TOKENS,
    MAX_PROMPTS,
    check_count,
    check_stop,
    check_text,
)
from taskmix_server.errors import InvalidRequestError
from taskmix_server.rest.body import Body, parse_body

LOOP_BYTES = 2**16
"""Of a body that is parsed at once; one with more would keep everybody else waiting."""


async def bounded_body(raw: bytes) -> Body:
    """A request's JSON object within all limits, or InvalidRequestError."""
    return await asyncio.to_thread(_bounded, raw) if len(raw) > LOOP_BYTES else _bounded(raw)


def _bounded(raw: bytes) -> Body:
    body = parse_body(raw)
    check_bounds(body)
    return body


def has_many(prompt: Any) -> bool:
    """Whether a prompt is a list of prompts, and not one that comes as token ids."""
    return isinstance(prompt, list) and not {int, bool}.issuperset(map(type, prompt))


def check_bounds(body: Body) -> None:
    """InvalidRequestError for what is over a limit. Types are vLLM's to check, and it does."""
    _check_depth(body)
    _check_n(body)
    _check_length_penalty(body)
    _check_stop(body)
    _check_prompts(body.get("prompt"))
    _check_messages(body.get("messages"))


def _check_depth(body: Body) -> None:
    level: list[Any] = [body]
    for _ in range(MAX_JSON_DEPTH):
        level = [child for parent in level for child in _children(parent) if _is_nested(child)]
        if not level:
            return
    raise InvalidRequestError(f"a body has at most {MAX_JSON_DEPTH} levels of objects and lists")


def _check_n(body: Body) -> None:
    """Hold `n` to the server's own limit, which is far below vLLM's."""
    n = body.get("n")
    if n is not None and not (isinstance(n, int) and 1 <= n <= MAX_COMPLETIONS):
        raise InvalidRequestError(f"n must be an integer in [1, {MAX_COMPLETIONS}], got {n!r:.40}")


def _check_length_penalty(body: Body) -> None:
    penalty = body.get("length_penalty")
    if isinstance(penalty, int | float) and abs(penalty) > MAX_LENGTH_PENALTY:
        raise InvalidRequestError(
            f"length_penalty must be in [-{MAX_LENGTH_PENALTY:g}, {MAX_LENGTH_PENALTY:g}], got "
            f"{penalty:g}"
        )


def _check_stop(body: Body) -> None:
    stop = body.get("stop")
    texts = [stop] if isinstance(stop, str) and stop else stop or []
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        check_stop(texts)


def _check_prompts(prompt: Any) -> None:
    """A prompt is text or token ids; a list of either is so many prompts."""
    prompts = prompt if has_many(prompt) else [prompt]
    check_count(len(prompts), MAX_PROMPTS, "prompts")
    for one in prompts:
        if isinstance(one, str):
            check_text(len(one))
        if isinstance(one, list):
            check_count(len(one), MAX_PROMPT_TOKENS, "token ids")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list):
        return
    check_count(len(messages), MAX_MESSAGES, "messages")
    check_text(_num_characters(messages))


def _num_characters(value: Any) -> int:
    """Of all texts in what is within the limit of depth."""
    if isinstance(value, str):
        return len(value)
    return sum(map(_num_characters, _children(value))) if _is_nested(value) else 0


def _is_nested(value: Any) -> bool:
    return isinstance(value, dict | list)


def _children(value: dict[str, Any] | Sequence[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
