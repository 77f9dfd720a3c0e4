"""Messages of a stream, to a caller who reads them."""

import asyncio

from google.protobuf.message import Message

from taskmix_server.errors import DeadlineExceededError
from taskmix_server.rpc.status import Context

READER_S = 20.0


async def write(context: Context, message: Message) -> None:
    """Send a message; DeadlineExceededError where the caller has not made room for it in time.

    gRPC takes messages until its buffers and those of the caller are full, and then waits.
    """
    try:
        async with asyncio.timeout(READER_S):
            await context.write(message)
    except TimeoutError:
        raise DeadlineExceededError(
            f"nothing of the answer was read for {READER_S:.0f} s; its work was stopped"
        ) from None
