"""A body of OpenAI's held to the server's limits, before vLLM's app sees it."""

from collections.abc import Iterable, Sequence
from typing import Any

from taskmix_server.domain.limits import (
    MAX_COMPLETIONS,
    MAX_JSON_DEPTH,
    MAX_MESSAGES,
    MAX_PROMPT_TOKENS,
    MAX_PROMPTS,
    check_count,
    check_stop,
    check_text,
)
from taskmix_server.errors import InvalidRequestError
from taskmix_server.rest.body import Body


def check_bounds(body: Body) -> None:
    """InvalidRequestError for what is over a limit. Types are vLLM's to check, and it does."""
    _check_depth(body)
    _check_n(body)
    _check_integers(body)
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


def _check_integers(value: Any) -> None:
    """Refuse what the engine's processes cannot hand each other, anywhere in a body."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise InvalidRequestError(f"integers have at most 64 bits, got {value!r:.40}")
    for child in _children(value) if _is_nested(value) else ():
        _check_integers(child)


def _check_n(body: Body) -> None:
    """Hold `n` to the server's own limit, which is far below vLLM's."""
    n = body.get("n")
    if n is not None and not (isinstance(n, int) and 1 <= n <= MAX_COMPLETIONS):
        raise InvalidRequestError(f"n must be an integer in [1, {MAX_COMPLETIONS}], got {n!r:.40}")


def _check_stop(body: Body) -> None:
    stop = body.get("stop")
    texts = [stop] if isinstance(stop, str) and stop else stop or []
    if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
        check_stop(texts)


def _check_prompts(prompt: Any) -> None:
    """A prompt is text or token ids; a list of either is so many prompts."""
    is_many = isinstance(prompt, list) and any(not isinstance(item, int) for item in prompt)
    prompts = prompt if is_many else [prompt]
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
