"""OpenAI's generation routes: find the variant a body names, hold it, hand the rest to vLLM."""

import json
import logging
import math
import uuid
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskmix_composer.errors import ComposerError
from taskmix_composer.recipe import mix_from_json
from taskmix_server.domain.generation import MAX_COMPLETIONS, ExperimentTarget, Target
from taskmix_server.domain.variant import Variant
from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.errors import InternalError, InvalidRequestError, ServingError
from taskmix_server.rest.models import RESOLVED, ResolvedModel
from taskmix_server.rest.status import error_response, json_error
from taskmix_server.services.inference import InferenceService, check_head

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 2**20

Body = dict[str, Any]
EXPECTED = (ServingError, ComposerError)


class GenerationRoute:
    """ASGI app in front of vLLM's, for one request at a time to one generation route."""

    def __init__(
        self, inner: ASGIApp, inference: InferenceService, engine: VllmEngine, base_name: str
    ) -> None:
        self._inner = inner
        self._inference = inference
        self._engine = engine
        self._base_name = base_name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = uuid.uuid4().hex
        reply = Reply(send)
        try:
            async with self._inference.counted("http") as outcome:
                await self._serve(scope, receive, reply)
                if reply.status >= HTTPStatus.BAD_REQUEST:  # refused by vLLM's own app
                    outcome.name = f"HTTP {reply.status}"
        except Exception as error:  # the process edge
            if isinstance(error, EXPECTED) and not isinstance(error, InternalError):
                await error_response(error)(scope, receive, reply)
                return
            logger.exception("request %s failed", request_id)
            if reply.status:  # vLLM's app has answered and raised again for the log
                return
            message = f"internal error (request {request_id})"
            response = json_error(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", message)
            await response(scope, receive, reply)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = parse_body(await read_body(receive))
        check_n(body)
        name = model_name(body) or self._base_name
        async with AsyncExitStack() as held:
            target = await self._target(body, name)
            variant, arm = await held.enter_async_context(self._inference.lease(target))
            check_head(variant, wants_prompt_logprobs=wants_prompt_logprobs(body))
            token = RESOLVED.set(ResolvedModel(name, self._engine.lora_request(variant)))
            held.callback(RESOLVED.reset, token)
            raw = json.dumps(for_vllm(body, name)).encode()
            await self._inner(
                with_length(scope, len(raw)), replayed(raw, receive), tagged(send, variant, arm)
            )

    async def _target(self, body: Body, name: str) -> Target:
        structured = body.pop("task_mix", None)
        if structured is not None:
            return mix_from_json(structured)
        target = await self._inference.find(name, self._base_name)
        if isinstance(target, ExperimentTarget):
            return ExperimentTarget(target.name, str(body.get("user") or ""))
        return target


class Reply:
    """A `send` that knows the status that was sent; 0 before a response was begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


def parse_body(raw: bytes) -> Body:
    """The request's JSON object, or InvalidRequestError."""
    try:
        body = json.loads(raw, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequestError("the body must be a JSON object")
    return body


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def model_name(body: Body) -> str:
    """What the body names as `model`; empty if nothing."""
    name = body.get("model")
    if name is None:
        return ""
    if not isinstance(name, str):
        raise InvalidRequestError("model must be a string: the base, a mix's name or a mix")
    if any("\ud800" <= character <= "\udfff" for character in name):
        raise InvalidRequestError("model must be text: it has half of a surrogate pair")
    return name


def check_n(body: Body) -> None:
    """Hold `n` to the server's own limit, which is far below vLLM's."""
    n = body.get("n")
    if n is not None and not (isinstance(n, int) and 1 <= n <= MAX_COMPLETIONS):
        raise InvalidRequestError(f"n must be an integer in [1, {MAX_COMPLETIONS}], got {n!r:.40}")


def for_vllm(body: Body, name: str) -> Body:
    """The body with what only the server may choose: the resolved model, priority, cache salt."""
    kept = {key: value for key, value in body.items() if key not in ("cache_salt", "priority")}
    return {**kept, "model": name}


def wants_prompt_logprobs(body: Body) -> bool:
    """Whether vLLM would compute log-probabilities of the prompt (`echo` returns them too)."""
    echoed = bool(body.get("echo")) and body.get("logprobs") is not None
    return body.get("prompt_logprobs") is not None or echoed


async def read_body(receive: Receive) -> bytes:
    """The whole body, bounded."""
    chunks = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequestError("the caller went away before the request was complete")
        chunks += message.get("body", b"")
        if len(chunks) > MAX_BODY_BYTES:
            raise InvalidRequestError(f"the body has more than {MAX_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(chunks)


def replayed(raw: bytes, receive: Receive) -> Receive:
    """A `receive` that gives this body once and then what the connection says (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message


def with_length(scope: Scope, num_bytes: int) -> Scope:
    """The scope with the length of the rewritten body."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(num_bytes).encode())]}


def tagged(send: Send, variant: Variant, arm: str) -> Send:
    """A `send` that adds what answered to the response's headers."""
    identity = {
        b"x-taskmix-digest": variant.digest,
        b"x-taskmix-bank": variant.bank_revision,
        b"x-taskmix-arm": arm,
    }
    extra = [(name, value.encode()) for name, value in identity.items() if value]

    async def send_tagged(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return send_tagged
