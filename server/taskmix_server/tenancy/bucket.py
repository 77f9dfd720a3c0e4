"""A bucket of tokens that may be spent before they are there.

What a generation costs is known when it has ended, so that a tenant can owe: it is refused until
its rate has paid the debt. Libraries for rates (limits, aiolimiter, pyrate-limiter) either wait or
refuse at the cost given beforehand, and none takes a charge afterwards or says when a debt is paid.
"""

import time
from collections.abc import Callable

BURST_S = 1.0
"""A bucket holds what its rate gives in this time, and one token at least."""

_ROUNDING = 1e-9

Now = Callable[[], float]


class Bucket:
    """Fills at a rate per second, from full. The rate is given anew each time: it may change."""

    def __init__(self, now: Now = time.monotonic) -> None:
        self._now = now
        self._level: float | None = None
        self._seen_s = now()

    def wait_s(self, rate: float) -> float:
        """Seconds until there is a whole token; 0 if there is one."""
        missing = 1.0 - self._filled(rate)
        return 0.0 if missing <= _ROUNDING else missing / rate

    def spend(self, rate: float, amount: float) -> None:
        """Take tokens out, more than there are if need be."""
        self._level = self._filled(rate) - amount

    def _filled(self, rate: float) -> float:
        capacity = max(1.0, rate * BURST_S)
        now_s = self._now()
        level = capacity if self._level is None else self._level
        self._level = min(capacity, level + rate * (now_s - self._seen_s))
        self._seen_s = now_s
        return self._level
