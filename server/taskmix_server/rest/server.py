"""The HTTP app on the uvicorn server that carries it."""

import asyncio
import socket

import uvicorn
from vllm.entrypoints.launchers.launcher import NoSignalServer

from taskmix_server.domain.limits import MAX_HEAD_BYTES
from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.errors import FailedPreconditionError, UnavailableError
from taskmix_server.rest.app import build_app
from taskmix_server.rest.connection import KEEP_ALIVE_S, BoundedConnection
from taskmix_server.rest.openai_app import OpenAiApp
from taskmix_server.rest.tls import tls_factory
from taskmix_server.runtime.certificates import CertificateFiles
from taskmix_server.services.services import Services

START_POLL_S = 0.01
SEND_BUFFER_BYTES = 2**16


class HttpEdge:
    """Serves the HTTP app until it is stopped."""

    def __init__(self, server: NoSignalServer, openai_app: OpenAiApp) -> None:
        self._server = server
        self._openai_app = openai_app
        self._serving: asyncio.Task[None] | None = None

    @classmethod
    async def create(
        cls,
        engine: VllmEngine,
        services: Services,
        base_name: str,
        certificate: CertificateFiles | None,
    ) -> "HttpEdge":
        """An edge that does not listen yet."""
        openai_app = OpenAiApp(engine)
        await openai_app.bind()
        config = uvicorn.Config(
            build_app(openai_app, services, engine, base_name),
            http=BoundedConnection,
            ws="none",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ssl_context_factory=tls_factory(certificate) if certificate else None,
        )
        return cls(NoSignalServer(config), openai_app)

    async def follow_engine(self) -> None:
        """Serve from the engine's client of now: it was started again."""
        await self._openai_app.bind()

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
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Of each connection; the kernel would take megabytes for a reader who has stopped.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
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
