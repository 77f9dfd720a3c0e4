"""Whether the server takes work, and what it still has in hand."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class ServerState:
    """Whether new work is taken, and whether any is in flight. One event loop only.

    is_restoring: what an engine held that has died is not all back yet.
    """

    def __init__(self) -> None:
        self.is_draining = False
        self.is_restoring = False
        self._num_in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request while the block runs."""
        self._num_in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_in_flight -= 1
            if self._num_in_flight == 0:
                self._idle.set()

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests and wait for those in flight, at most `grace_s`."""
        self.is_draining = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), grace_s)
