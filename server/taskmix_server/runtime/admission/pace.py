"""How fast requests have been served of late, to tell callers when to come back."""

import time
from collections import deque
from collections.abc import Callable

MIN_WAIT_S = 0.1
MAX_WAIT_S = 30.0
NUM_KEPT = 64

Now = Callable[[], float]


class Pace:
    """The times at which the last answers ended."""

    def __init__(self, now: Now = time.monotonic) -> None:
        self._now = now
        self._ends: deque[float] = deque(maxlen=NUM_KEPT)

    def tell(self, num_answers: int) -> None:
        """So many answers have ended."""
        self._ends.extend([self._now()] * min(num_answers, NUM_KEPT))

    def wait_s(self, num_answers: float) -> float:
        """Seconds in which so many answers probably end; one second each while none has ended."""
        steps = len(self._ends) - 1
        seconds = self._ends[-1] - self._ends[0] if steps > 0 else 0.0
        expected_s = num_answers * seconds / steps if steps > 0 else num_answers
        return min(max(expected_s, MIN_WAIT_S), MAX_WAIT_S)
