"""From a key to a principal, once per key and minute the slow way."""

import asyncio
import hashlib
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime

from cachetools import TTLCache

from taskmix_server.errors import UnauthenticatedError
from taskmix_server.tenancy import keys
from taskmix_server.tenancy.keys import ApiKey
from taskmix_server.tenancy.principal import DEFAULT, Principal
from taskmix_server.tenancy.store import TenantStore

REMEMBERED_S = 60.0
MAX_REMEMBERED = 10_000
MAX_CONCURRENT_CHECKS = 2  # each takes 46 MiB and a core for some 50 ms

Now = Callable[[], datetime]


@dataclass(frozen=True, slots=True)
class _Verified:
    principal: Principal
    key: ApiKey


class Authenticator:
    """Knows who calls. One event loop only.

    Verified keys are remembered under a BLAKE2 keyed with bytes of this process alone: memory
    holds no key, and a look-up tells nothing about one by its timing. `forget` drops them all, and
    whatever is being verified is not remembered then either; every change of tenants or keys calls
    it. A clock that is set back brings no key back: the latest moment that was seen counts.
    """

    def __init__(self, store: TenantStore, now: Now = lambda: datetime.now(UTC)) -> None:
        self.is_open = store.is_empty  # decided once: nobody is locked out of a running server
        self._store = store
        self._now = now
        self._latest = now()
        self._salt = secrets.token_bytes(32)
        self._verified: TTLCache[bytes, _Verified] = TTLCache(
            MAX_REMEMBERED, REMEMBERED_S, time.monotonic
        )
        self._generation = 0
        self._turns = asyncio.Semaphore(MAX_CONCURRENT_CHECKS)
        # A caller that leaves gives up its turn; the check it began goes on in one of these.
        self._threads = ThreadPoolExecutor(MAX_CONCURRENT_CHECKS, "key-check")

    async def principal(self, text: str | None) -> Principal:
        """Whose key it is, or UnauthenticatedError: no key and a wrong one look alike."""
        if self.is_open:
            return DEFAULT
        verified = await self._verify(text) if text else None
        self._latest = max(self._latest, self._now())
        if verified is None or not verified.key.is_valid(self._latest):
            raise UnauthenticatedError(
                "no valid API key; send one as 'authorization: Bearer KEY', or ask the operator "
                "for one"
            )
        return verified.principal

    def forget(self) -> None:
        """Verify every key anew from now on."""
        self._generation += 1
        self._verified.clear()

    async def _verify(self, text: str) -> _Verified | None:
        key_id = keys.id_of(text)
        if key_id is None:
            return None
        name = hashlib.blake2b(text.encode(), key=self._salt).digest()
        known = self._verified.get(name)
        if known is not None:
            return known
        async with self._turns:
            known = self._verified.get(name)
            if known is not None:  # by a request that came with this one and was ahead
                return known
            generation = self._generation
            loop = asyncio.get_running_loop()
            found = await loop.run_in_executor(self._threads, self._look_up, key_id, text)
        if found is not None and generation == self._generation:
            self._verified[name] = found
        return found

    def _look_up(self, key_id: str, text: str) -> _Verified | None:
        found = self._store.find_key(key_id)
        if found is None:
            return None
        key, kept, tenant = found
        if not key.is_valid(self._now()) or not keys.fits(text, kept):
            return None
        return _Verified(Principal(tenant, key.id), key)
