"""A request's body: read within bounds of size and time, and parsed."""

import asyncio
import json
import math
from typing import Any

from starlette.types import Receive

from taskmix_server.domain.limits import MAX_REQUEST_BYTES
from taskmix_server.errors import DeadlineExceededError, InvalidRequestError

BODY_S = 60.0

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
