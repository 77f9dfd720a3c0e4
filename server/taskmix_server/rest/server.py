"""vLLM's OpenAI app bound to our engine, and the uvicorn server that carries it."""

import asyncio
import socket
from argparse import Namespace
from typing import Any

import uvicorn
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app as build_vllm_app
from vllm.entrypoints.launchers.launcher import NoSignalServer

from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.errors import FailedPreconditionError, UnavailableError
from taskmix_server.rest.app import build_app
from taskmix_server.rest.models import ResolvedModels
from taskmix_server.rest.observed import ObservedClient
from taskmix_server.rest.tls import tls_factory
from taskmix_server.runtime.certificates import CertificateFiles
from taskmix_server.services.services import Services

START_POLL_S = 0.01


class HttpEdge:
    """Serves the HTTP app until it is stopped."""

    def __init__(self, server: NoSignalServer) -> None:
        self._server = server
        self._serving: asyncio.Task[None] | None = None

    @classmethod
    async def create(
        cls,
        engine: VllmEngine,
        arguments: Namespace,
        services: Services,
        base_name: str,
        certificate: CertificateFiles | None,
    ) -> "HttpEdge":
        """`arguments` are those of `vllm serve`, which its app reads in about sixty places."""
        client: Any = engine.client
        tasks = await client.get_supported_tasks()
        vllm_app = build_vllm_app(arguments, tasks, client.model_config)
        await init_app_state(ObservedClient(client), vllm_app.state, arguments, tasks)
        ResolvedModels.take_over(vllm_app.state.openai_serving_models)
        app = build_app(vllm_app, services, engine, base_name)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            ssl_context_factory=tls_factory(certificate) if certificate else None,
        )
        server = NoSignalServer(config)
        vllm_app.state.server = server
        return cls(server)

    async def start(self, host: str, port: int) -> int:
        """Listen; port 0 picks a free one. Returns the port."""
        listener = _listen(host, port)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:  # a flag, no event
            if self._serving.done():
                raise UnavailableError("the HTTP app did not start; its messages above say why")
            await asyncio.sleep(START_POLL_S)
        bound: int = listener.getsockname()[1]
        return bound

    async def stop(self, grace_s: float) -> None:
        """Close the port and wait for open requests, at most `grace_s`."""
        assert self._serving is not None, "stopped before it was started"
        self._server.should_exit = True
        done, _ = await asyncio.wait({self._serving}, timeout=grace_s)
        if not done:
            self._server.force_exit = True
            await self._serving


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # callers who read the ready line may connect before uvicorn accepts
    except OSError as error:
        listener.close()
        raise FailedPreconditionError(
            f"cannot listen on {host}:{port} for HTTP ({error.strerror}); "
            "choose another --http-port or 0"
        ) from error
    return listener
