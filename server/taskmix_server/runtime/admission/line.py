"""The line of requests in front of the engine.

The engine gets no more than it can run at once, so that who is next stays open until there is a
seat: the tenant that was served least, and of its requests the one that it put first. vLLM's own
queue, which keeps the order in which requests were given to it, stays short; there they have the
tenant's counter as their priority, which decides who waits or is preempted where there is no room
for keys and values.
"""

import asyncio
import bisect
import itertools
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from taskmix_server.runtime.admission.pace import Now, Pace
from taskmix_server.tenancy.fairness import Cost, Shares

PRIORITY_SCALE = 1000
"""vLLM's priorities are integers; a counter is told to a thousandth of a token."""

KEPT_S = 10.0

_numbers = itertools.count()


@dataclass(slots=True, eq=False)
class Place:
    """One prompt's place in the line, and then its seats: one for each of its answers.

    expected_tokens: of the prompt and of all its answers. rank: the caller's own priority.
    """

    request_id: str
    tenant: str
    num_answers: int
    expected_tokens: float
    cost: Cost
    rank: int = 0
    number: int = field(default_factory=lambda: next(_numbers))
    seats: int = 0
    priority: int = 0
    called: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def order(self) -> tuple[int, int]:
        return self.rank, self.number


class Line:
    """Seats of the engine, and who waits for one. One event loop only.

    A seat is kept for each tenant that had one in the last `KEPT_S` seconds and asks for none, for
    half of the seats at most. Else requests of one tenant that were started together would make
    whoever comes now and then wait until they end together.
    """

    def __init__(self, num_seats: int, now: Now = time.monotonic) -> None:
        self.shares = Shares()
        self.pace = Pace(now)
        self._num_seats = num_seats
        self._now = now
        self._waiting: dict[str, list[Place]] = {}  # by tenant, each in its order
        self._seated: dict[str, Place] = {}  # by the request's id
        self._taken: Counter[str] = Counter()  # seats by tenant
        self._left_s: dict[str, float] = {}  # when a tenant gave up its last seat

    def num_seats_for(self, tenant: str) -> int:
        """Seats that a tenant may use now, the ones that it has among them."""
        oldest_s = self._now() - KEPT_S
        self._left_s = {name: left_s for name, left_s in self._left_s.items() if left_s > oldest_s}
        num_kept = len(self._left_s.keys() - self._waiting.keys() - {tenant})
        return self._num_seats - min(num_kept, self._num_seats // 2)

    @property
    def num_taken(self) -> int:
        """Seats in use."""
        return self._taken.total()

    async def turn(self, place: Place) -> int:
        """Wait for seats; the request's priority in the engine. `leave` must follow."""
        if place.tenant not in self._waiting:
            self.shares.enter(place.tenant)
        bisect.insort(
            self._waiting.setdefault(place.tenant, []), place, key=lambda other: other.order
        )
        self._call()
        await place.called.wait()
        return place.priority

    def leave(self, place: Place, num_tokens: int) -> None:
        """Give up a place, or the seats that are left of it; `num_tokens` is what it was served."""
        if place.called.is_set():
            del self._seated[place.request_id]
            self._free(place, place.seats)
            missing = place.cost.of(num_tokens - place.expected_tokens)
            self.shares.correct(place.tenant, missing)
        else:
            self._forget(place)
        self._call()

    def end(self, request_ids: Iterable[str]) -> None:
        """Answers that the engine has finished, whether or not their readers have them yet."""
        for request_id in request_ids:
            place = self._seated.get(request_id)
            if place is not None and place.seats:
                self._free(place, 1)
        self._call()

    def _call(self) -> None:
        """Seat whoever is next, while there are seats."""
        while (tenant := self._next()) is not None:
            place = self._waiting[tenant][0]
            self._forget(place)
            self._seat(place)

    def _next(self) -> str | None:
        """The tenant whose turn it is, if it may have a seat now."""
        num_taken = self.num_taken
        able = (tenant for tenant in self._waiting if num_taken < self.num_seats_for(tenant))
        return min(able, key=self._served, default=None)

    def _served(self, tenant: str) -> tuple[float, int]:
        return self.shares.counter(tenant), self._taken[tenant]

    def _seat(self, place: Place) -> None:
        start = self.shares.serve(place.tenant, place.cost.of(place.expected_tokens))
        place.priority = round(start * PRIORITY_SCALE)
        place.seats = place.num_answers
        self._seated[place.request_id] = place
        self._taken[place.tenant] += place.num_answers
        self._left_s.pop(place.tenant, None)
        place.called.set()

    def _free(self, place: Place, num_seats: int) -> None:
        self.pace.tell(num_seats)
        place.seats -= num_seats
        self._taken[place.tenant] -= num_seats
        if not self._taken[place.tenant]:
            del self._taken[place.tenant]
            self._left_s[place.tenant] = self._now()

    def _forget(self, place: Place) -> None:
        waiting = self._waiting[place.tenant]
        waiting.remove(place)
        if not waiting:
            del self._waiting[place.tenant]
