"""vLLM's OpenAI app on our engine's client, made again for each client."""

from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.utils.gc_utils import freeze_gc_heap
from vllm.v1.engine.async_llm import AsyncLLM

from taskmix_server.engine.vllm import clients
from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.rest.models import ResolvedModels
from taskmix_server.rest.observed import ObservedClient


class OpenAiApp:
    """ASGI app: the one of vLLM that goes with the engine's client.

    Its serving classes, tokenizers and all, belong to the client that they were made for: after a
    restart there is another app, and requests that are still in the old one end there.
    """

    def __init__(self, engine: VllmEngine) -> None:
        self._engine = engine
        self._bound: tuple[ASGIApp, AsyncLLM] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises UnavailableError for an answer that told of the engine's death."""
        assert self._bound is not None, "no request before the first bind"
        app, client = self._bound
        reply = _Reply(send, client)
        await app(scope, receive, reply)
        if reply.is_lost:
            raise clients.stopped()

    async def bind(self) -> None:
        """Make the app that goes with the engine's client of now.

        Raises UnavailableError if the engine has died or dies meanwhile.
        """
        arguments, client = self._engine.arguments, self._engine.client
        self._bound = await clients.answer_of(client, _app_of(arguments, client)), client


async def _app_of(arguments: Namespace, client: AsyncLLM) -> Starlette:
    """vLLM's app on a client, which is asked what its engine can do."""
    tasks = await client.get_supported_tasks()
    app: Starlette = build_app(arguments, tasks, client.model_config)
    await init_app_state(ObservedClient(client), app.state, arguments, tasks)
    ResolvedModels.take_over(app.state.openai_serving_models)
    app.state.server = None  # vLLM asks for it where the engine has died, and leaves it alone
    return app


class _Reply:
    """A `send` that keeps back what vLLM calls an error of its own once its engine has died."""

    def __init__(self, send: Send, client: AsyncLLM) -> None:
        self._send = send
        self._client = client
        self.is_lost = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            is_failure = message["status"] == HTTPStatus.INTERNAL_SERVER_ERROR
            self.is_lost = is_failure and self._client.errored
        if not self.is_lost:
            await self._send(message)


@asynccontextmanager
async def frozen_heap(app: Starlette) -> AsyncIterator[None]:
    """What is left of the lifespan of vLLM's app: the collector passes over what starting made."""
    freeze_gc_heap()
    yield
