"""A request's body: read within bounds of size and time, and parsed."""

import asyncio
import json
import math
from typing import Any

from starlette.types import Receive

from taskmix_server.domain.limits import (
    MAX_JSON_NESTED,
    MAX_JSON_TEXTS,
    MAX_JSON_VALUES,
    MAX_REQUEST_BYTES,
    check_count,
)
from taskmix_server.errors import DeadlineExceededError, InvalidRequestError

BODY_S = 60.0
MAX_DIGITS = 20
"""Of an integer of 64 bits, with its sign."""

Body = dict[str, Any]


async def read_body(receive: Receive) -> bytes:
    """The whole body, bounded in bytes and in time."""
    try:
        async with asyncio.timeout(BODY_S):
            return await _whole_body(receive)
    except TimeoutError:
        raise DeadlineExceededError(f"the body was not here within {BODY_S:.0f} s") from None


async def _whole_body(receive: Receive) -> bytes:
    chunks = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise InvalidRequestError("the caller went away before the request was complete")
        chunks += message.get("body", b"")
        if len(chunks) > MAX_REQUEST_BYTES:
            raise InvalidRequestError(f"the body has more than {MAX_REQUEST_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(chunks)


def parse_body(raw: bytes) -> Body:
    """The request's JSON object, or InvalidRequestError."""
    _check_size(raw)
    try:
        body = json.loads(
            raw.decode(), parse_int=_integer, parse_float=_finite, parse_constant=_finite
        )
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InvalidRequestError("the body must be a JSON object")
    return body


def _check_size(raw: bytes) -> None:
    """Refuse JSON of too many parts before they are made: while the parser makes lists, objects and
    texts, it lets no other thread run."""
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    check_count(plain.count(b'"') // 2, MAX_JSON_TEXTS, "texts and keys in its body")
    structure = b"".join(plain.split(b'"')[::2])
    num_nested = structure.count(b"[") + structure.count(b"{")
    check_count(num_nested, MAX_JSON_NESTED, "lists and objects in its body")
    check_count(num_nested + structure.count(b","), MAX_JSON_VALUES, "values in its body")


def _integer(text: str) -> int:
    """Refuse what the engine's processes cannot hand each other."""
    if len(text) <= MAX_DIGITS and -(2**63) <= (number := int(text)) < 2**63:
        return number
    raise InvalidRequestError(f"integers have at most 64 bits, got {text:.40}")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number
