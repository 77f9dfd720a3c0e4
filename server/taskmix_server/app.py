"""A server's life: start every part, run until told to stop, drain, end."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from taskmix_server.database import state_in_use
from taskmix_server.engine.vllm.engine import VllmEngine
from taskmix_server.engine.vllm.process import end_children, mark_engine_children
from taskmix_server.settings import Settings
from taskmix_server.telemetry.metrics import Metrics
from taskmix_server.telemetry.reporting import Reporter
from taskmix_server.wiring import Kept, checked_bank, wire

logger = logging.getLogger(__name__)

MAX_THREADS = 64


def serve(settings: Settings) -> None:
    """Run the server until SIGTERM or SIGINT, then drain and return."""
    mark_engine_children()
    with state_in_use(settings.state):
        asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    _on_stop(_leave_at_once)
    # Calls of the database that wait for its lock leave threads to those that tokenise.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(MAX_THREADS))
    reporter = Reporter(settings.telemetry, Metrics())
    bank = await asyncio.to_thread(checked_bank, settings)
    kept = await asyncio.to_thread(Kept.open, settings)
    engine = await VllmEngine.start(settings.engine)
    try:
        server = await wire(settings, bank, engine, kept, reporter)
        grpc_port = await server.grpc.start(settings.host, settings.grpc_port)
        http_port = await server.http.start(settings.host, settings.http_port)
    except BaseException:
        await engine.close()
        raise
    stopping = asyncio.Event()
    _on_stop(stopping.set)
    _announce(settings.host, grpc_port, http_port)
    supervising = asyncio.create_task(server.supervisor.run())
    stopped = asyncio.create_task(stopping.wait())
    loops = [begun(loop()) for loop in server.loops]
    await asyncio.wait({supervising, stopped}, return_when=asyncio.FIRST_COMPLETED)
    supervising.cancel()  # an engine that dies from now on stays dead
    logger.info("draining, at most %.0f s", settings.drain_s)
    for loop in loops:
        loop.cancel()
    await server.drain(settings.drain_s)
    try:
        with suppress(asyncio.CancelledError):
            await supervising
    finally:
        await server.close()
        await asyncio.to_thread(reporter.close)


def begun(loop: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Run what lasts as long as the server; a defect that ends it is logged at once."""
    task = asyncio.create_task(loop)
    task.add_done_callback(_log_defect)
    return task


def _log_defect(loop: asyncio.Task[None]) -> None:
    if loop.cancelled() or (error := loop.exception()) is None:
        return
    name = getattr(loop.get_coro(), "__qualname__", loop.get_name())
    logger.error("%s has ended and will not run again; restart the server", name, exc_info=error)


def _on_stop(react: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, react)


def _leave_at_once() -> None:
    """Stopped before it took requests: nothing to drain.

    An engine process that is still waiting for its first word from here would wait for minutes.
    """
    end_children()
    os._exit(0)


def _announce(host: str, grpc_port: int, http_port: int) -> None:
    """The one line on stdout that says the server takes requests."""
    shown = f"[{host}]" if ":" in host else host
    ready = {"ready": True, "grpc": f"{shown}:{grpc_port}", "http": f"{shown}:{http_port}"}
    sys.stdout.write(json.dumps(ready) + "\n")
    sys.stdout.flush()
