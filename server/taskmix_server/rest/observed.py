"""The engine's client as vLLM's app sees it: every output that passes is counted.

vLLM's app makes the answer, so the edge would have to parse its events to know their tokens. Its
serving classes ask the client for each prompt of a request, and get the tokens as numbers.
"""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from taskmix_server.engine.vllm.phases import phases_of
from taskmix_server.rest.models import RESOLVED
from taskmix_server.telemetry.requests import EngineRun, RequestRecord


class ObservedClient:
    """Stands for an engine client; all but `generate` is the client's own."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def generate(self, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
        """The client's outputs, for the request being served by the calling task."""
        return _counted(self._client.generate(*args, **kwargs), RESOLVED.get().record)


async def _counted(outputs: AsyncGenerator[Any], record: RequestRecord) -> AsyncGenerator[Any]:
    with record.run() as run:
        async with aclosing(outputs):
            async for output in outputs:
                _advance(run, output)
                yield output


def _advance(run: EngineRun, output: Any) -> None:
    """Streams give new tokens at a time; whole answers come in one output."""
    run.num_prompt_tokens = len(output.prompt_token_ids or ())
    run.num_cached_tokens = output.num_cached_tokens or 0
    tokens = {piece.index: len(piece.token_ids) for piece in output.outputs}
    run.advance(time.monotonic(), tokens, phases_of(output))
