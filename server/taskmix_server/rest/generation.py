"""OpenAI's generation routes: find the variant a body names, hold it, hand the rest to vLLM."""

import json
import logging
import uuid
from contextlib import AsyncExitStack
from http import HTTPStatus

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from taskmix_composer.errors import ComposerError
from taskmix_composer.recipe import mix_from_json
from taskmix_server.domain.generation import ExperimentTarget, Target
from taskmix_server.domain.variant import Variant
from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.errors import (
    InternalError,
    InvalidRequestError,
    ServingError,
)
from taskmix_server.rest.access import caller
from taskmix_server.rest.body import Body, read_body
from taskmix_server.rest.bounds import bounded_body
from taskmix_server.rest.limits import ask_of, limited, unless_refused
from taskmix_server.rest.models import RESOLVED, ResolvedModel
from taskmix_server.rest.status import CLIENT_CLOSED, error_response, json_error, status_name
from taskmix_server.services.inference import InferenceService, check_head
from taskmix_server.telemetry.outcomes import LEFT
from taskmix_server.telemetry.requests import TRACE_HEADERS, RequestRecord
from taskmix_server.tenancy.principal import Principal

logger = logging.getLogger(__name__)

REPLACED_HEADERS = frozenset(
    (
        b"authorization",
        b"content-length",
        b"x-request-id",
        *(name.encode() for name in TRACE_HEADERS),
    )
)

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
        record = new_record(scope)
        reply = Reply(send)
        try:
            async with self._inference.observed(record, status_name):
                await self._serve(scope, receive, reply, record)
                reply.tell(record)
        except Exception as error:  # the process edge
            if isinstance(error, EXPECTED) and not isinstance(error, InternalError):
                await error_response(error)(scope, receive, reply)
                return
            logger.exception("request %s failed", record.request_id)
            if reply.status:  # vLLM's app has answered and raised again for the log
                return
            message = f"internal error (request {record.request_id})"
            response = json_error(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", message)
            await response(scope, receive, reply)

    async def _serve(
        self, scope: Scope, receive: Receive, reply: "Reply", record: RequestRecord
    ) -> None:
        principal = caller(scope)
        raw = await read_body(receive)
        self._inference.count(principal)
        body = await bounded_body(raw)
        name = model_name(body) or self._base_name
        async with AsyncExitStack() as held:
            ask = ask_of(body)
            ticket = held.enter_context(self._inference.admitted(principal, ask, is_counted=True))
            body = limited(body, scope["path"], principal.tenant.limits)
            target = await self._target(body, name, principal)
            lease = self._inference.lease(target, principal, record, ticket)
            variant = await held.enter_async_context(lease)
            check_head(variant, wants_prompt_logprobs=wants_prompt_logprobs(body))
            resolved = ResolvedModel(name, self._engine.lora_request(variant), record, ticket)
            held.callback(RESOLVED.reset, RESOLVED.set(resolved))
            raw = json.dumps(for_vllm(body, name, principal.cache_salt)).encode()
            await self._inner(
                rewritten(scope, len(raw), record.request_id),
                replayed(raw, reply.watched(receive)),
                unless_refused(tagged(reply, variant, record), ticket),
            )
            if ticket.refusal is not None:
                raise ticket.refusal

    async def _target(self, body: Body, name: str, principal: Principal) -> Target:
        structured = body.pop("task_mix", None)
        if structured is not None:
            return mix_from_json(structured)
        target = await self._inference.targets.find(name, self._base_name, principal)
        if isinstance(target, ExperimentTarget):
            return ExperimentTarget(target.name, str(body.get("user") or ""))
        return target


class Reply:
    """A `send` that knows what was sent: the status, 0 before a response was begun, whether all of
    its body was, and whether the caller left before."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0
        self.is_whole = False
        self.is_left = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)
        if message["type"] == "http.response.body":
            self.is_whole = not message.get("more_body", False)

    def watched(self, receive: Receive) -> Receive:
        """A `receive` that notes a caller who leaves before the end."""

        async def next_message() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not self.is_whole:
                self.is_left = True
            return message

        return next_message

    def tell(self, record: RequestRecord) -> None:
        """How vLLM's own app ended the request: answered, refused, or left by the caller."""
        record.status = str(self.status)
        if self.is_left or not self.is_whole:
            record.error, record.status = LEFT, CLIENT_CLOSED
        elif self.status >= HTTPStatus.BAD_REQUEST:
            record.error = f"HTTP {self.status}"


def new_record(scope: Scope) -> RequestRecord:
    """A record of a request that begins, with the caller's trace."""
    headers = ((name.decode("latin-1"), value) for name, value in scope["headers"])
    carrier = {name: value.decode("latin-1") for name, value in headers if name in TRACE_HEADERS}
    return RequestRecord(uuid.uuid4().hex, "http", caller(scope).name, carrier=carrier)


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


def for_vllm(body: Body, name: str, cache_salt: str | None) -> Body:
    """The body with what only the server may choose: the resolved model, priority, cache salt."""
    kept = {key: value for key, value in body.items() if key not in ("cache_salt", "priority")}
    salted = {} if cache_salt is None else {"cache_salt": cache_salt}
    return {**kept, **salted, "model": name}


def wants_prompt_logprobs(body: Body) -> bool:
    """Whether vLLM would compute log-probabilities of the prompt (`echo` returns them too)."""
    echoed = bool(body.get("echo")) and body.get("logprobs") is not None
    return body.get("prompt_logprobs") is not None or echoed


def replayed(raw: bytes, receive: Receive) -> Receive:
    """A `receive` that gives this body once and then what the connection says (a disconnect)."""
    pending: list[Message] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message


def rewritten(scope: Scope, num_bytes: int, request_id: str) -> Scope:
    """The scope with the length of the rewritten body, our request id, and without the caller's
    trace, which ends in spans of ours."""
    headers = [(name, value) for name, value in scope["headers"] if name not in REPLACED_HEADERS]
    own = [(b"content-length", str(num_bytes).encode()), (b"x-request-id", request_id.encode())]
    return {**scope, "headers": [*headers, *own]}


def tagged(send: Send, variant: Variant, record: RequestRecord) -> Send:
    """A `send` that adds what answered to the response's headers."""
    identity = {
        b"x-taskmix-digest": variant.digest,
        b"x-taskmix-bank": variant.bank_revision,
        b"x-taskmix-arm": record.arm,
        b"x-taskmix-request": record.request_id,
    }
    extra = [(name, value.encode()) for name, value in identity.items() if value]

    async def send_tagged(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await send(message)

    return send_tagged
