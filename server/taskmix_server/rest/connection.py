"""An HTTP connection of uvicorn's that cannot be held open for nothing."""

import asyncio
import socket
import struct
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

KEEP_ALIVE_S = 30
HEAD_S = 30.0
READER_S = 20.0
NO_LINGER = struct.pack("ii", 1, 0)


class BoundedConnection(H11Protocol):
    """Closed when it is slow: to send a request's head, or to read what it asked for.

    A connection whose reader has stopped is dropped with what was buffered for it (64 KiB, and one
    message), at which its request ends in the engine. Between requests it may be idle for
    uvicorn's `timeout_keep_alive`.
    """

    _head: asyncio.TimerHandle | None = None
    _reader: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._head, self._reader):
            if timer is not None:
                timer.cancel()

    def handle_events(self) -> None:
        super().handle_events()
        cycle: Any = self.cycle  # None before the first request
        if cycle is not None and not cycle.response_complete and self._head is not None:
            self._head.cancel()

    def on_response_complete(self) -> None:
        if self.transport.is_closing():
            self._await_reader()
        else:
            self._await_head()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.transport.is_closing():
            self._await_reader()  # of the rest
        elif self._reader is not None:
            self._reader.cancel()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._await_reader()

    def _await_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
        self._head = self.loop.call_later(HEAD_S, self._drop)

    def _await_reader(self) -> None:
        """Of what is buffered: closing waits for that too."""
        if self._reader is not None:
            self._reader.cancel()
        self._reader = self.loop.call_later(READER_S, self._drop)

    def _drop(self) -> None:
        """Close at once, with what the kernel holds for a reader who will not take it."""
        connection = self.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self.transport.abort()
