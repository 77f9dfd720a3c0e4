"""What a body asks for, in the terms of limits; and refusals from behind vLLM's app."""

from collections.abc import Mapping
from typing import Any

from starlette.types import Message, Send

from taskmix_server.errors import InvalidRequestError
from taskmix_server.rest.bounds import has_many
from taskmix_server.runtime.admission.admission import Ask
from taskmix_server.runtime.admission.tickets import Ticket
from taskmix_server.tenancy.tenant import Limits

Body = dict[str, Any]

DEFAULT_MAX_TOKENS: Mapping[str, int | None] = {
    "/v1/completions": 16,
    "/v1/chat/completions": None,
}
"""What vLLM takes where a body says nothing; None is what is left of the model's length."""

_MAX_TOKENS: Mapping[str, tuple[str, ...]] = {
    "/v1/completions": ("max_tokens",),
    "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
}
"""Fields that bound an answer; the first that is given counts. vLLM looks at no others."""


def ask_of(body: Body) -> Ask:
    """How many answers a body wants, and its priority. `n` was checked before."""
    prompt: Any = body.get("prompt")
    num_prompts = len(prompt) if has_many(prompt) else 1
    return Ask(num_prompts * (body.get("n") or 1), _integer(body, "priority") or 0)


def limited(body: Body, path: str, limits: Limits) -> Body:
    """The body with an answer's length within the tenant's limit, or InvalidRequestError."""
    given = [name for name in _MAX_TOKENS[path] if body.get(name) is not None]
    asked = _integer(body, given[0]) if given else None
    default = None if "max_tokens" in body else DEFAULT_MAX_TOKENS[path]
    most = limits.output_tokens(asked, default)
    if given or limits.max_output_tokens is None:
        return body
    return {**body, "max_tokens": most}


def unless_refused(send: Send, ticket: Ticket) -> Send:
    """A `send` that keeps back what vLLM's app makes of a refusal."""

    async def send_unless(message: Message) -> None:
        if ticket.refusal is None:
            await send(message)

    return send_unless


def _integer(body: Body, name: str) -> int | None:
    value = body.get(name)
    if value is not None and not isinstance(value, int):
        raise InvalidRequestError(f"{name} must be an integer, got {value!r:.40}")
    return value
