"""Who is let in: a tenant's own limits, then room in the line for it.

A request is let in or refused before its prompt is tokenised.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from taskmix_server.errors import InvalidRequestError, ResourceExhaustedError
from taskmix_server.runtime.admission.line import Line
from taskmix_server.runtime.admission.tickets import Ticket, Usage
from taskmix_server.tenancy.principal import Principal
from taskmix_server.tenancy.tenant import Limits, Tenant

QUEUE_PER_SEAT = 4
"""Answers that may wait for each one that the engine runs, where no other bound was chosen."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request asks for: answers over all of its prompts, and its caller's priority among
    the requests of one tenant, lower first."""

    num_answers: int = 1
    priority: int = 0


class Admission:
    """Lets requests in. One event loop only.

    num_seats: answers that the engine runs at a time. max_queued: how many may wait for one in the
    server as a whole. is_shared: whether there are tenants, which leave room to each other.
    """

    def __init__(self, num_seats: int, max_queued: int | None, *, is_shared: bool) -> None:
        self.line = Line(num_seats)
        self._max_queued = QUEUE_PER_SEAT * num_seats if max_queued is None else max_queued
        self._is_shared = is_shared
        self._usages: dict[str, Usage] = {}  # by the tenant's id

    def count(self, principal: Principal, num_answers: int = 1) -> None:
        """Count a request against its tenant's rate, if it could be let in now.

        num_answers: at least. Raises what `admitted` does.
        """
        limits, usage = principal.tenant.limits, self._usage(principal.tenant)
        self._check_rates(usage, limits)
        self._check_room(usage, limits, num_answers)
        if limits.requests_per_s is not None:
            usage.requests.spend(limits.requests_per_s, 1.0)

    @contextmanager
    def admitted(
        self, principal: Principal, ask: Ask, *, is_counted: bool = False
    ) -> Iterator[Ticket]:
        """Hold a request's place among its tenant's while the block runs.

        is_counted: whether `count` was called for it before, when it was not known what it asks.
        Raises ResourceExhaustedError, which says when to come back, or InvalidRequestError if
        coming back would not help.
        """
        tenant, usage = principal.tenant, self._usage(principal.tenant)
        if is_counted:
            self._check_room(usage, tenant.limits, ask.num_answers)
        else:
            self.count(principal, ask.num_answers)
        ticket = Ticket(self.line, tenant, usage, ask.num_answers, ask.priority)
        try:
            yield ticket
        finally:
            usage.num_open -= ask.num_answers
            usage.num_waiting -= ticket.num_unseated

    @property
    def num_waiting(self) -> int:
        """Answers of all tenants that have no seat yet."""
        return sum(usage.num_waiting for usage in self._usages.values())

    def waiting_by_tenant(self) -> dict[str, int]:
        """Answers that have no seat yet, by the name of their tenant."""
        return {usage.name: usage.num_waiting for usage in self._usages.values()}

    def _usage(self, tenant: Tenant) -> Usage:
        return self._usages.setdefault(tenant.id, Usage(tenant.id, tenant.name))

    def _check_rates(self, usage: Usage, limits: Limits) -> None:
        buckets = {
            "requests": (usage.requests, limits.requests_per_s),
            "tokens": (usage.tokens, limits.tokens_per_s),
        }
        for reason, (bucket, rate) in buckets.items():
            wait_s = 0.0 if rate is None else bucket.wait_s(rate)
            if wait_s > 0.0:
                raise ResourceExhaustedError(
                    f"tenant {usage.name!r} may use {rate:g} {reason} per second and has used "
                    f"more; try again in {wait_s:.2f} s",
                    wait_s,
                    reason,
                )

    def _check_room(self, usage: Usage, limits: Limits, num_answers: int) -> None:
        self._check_concurrency(usage, limits, num_answers)
        self._check_queue(usage, limits, num_answers)

    def _check_concurrency(self, usage: Usage, limits: Limits, num_answers: int) -> None:
        most = limits.max_concurrency
        if most is None:
            return
        _check_possible(num_answers, most, "max_concurrency")
        if usage.num_open + num_answers > most:
            num_open = sum(other.num_open for other in self._usages.values())
            wait_s = self.line.pace.wait_s(num_open / usage.num_open)
            message = f"tenant {usage.name!r} has {usage.num_open} answers open, of {most}"
            raise ResourceExhaustedError(message, wait_s, "concurrency")

    def _check_queue(self, usage: Usage, limits: Limits, num_answers: int) -> None:
        """Refuse a request that would have to wait where too many do."""
        seats = self.line.num_seats_for(usage.tenant_id)
        own = min(self._max_queued, limits.max_queued or self._max_queued)
        _check_possible(num_answers, seats + own, "max_queued")
        num_wanted = self.line.num_taken + self.num_waiting
        num_before = max(0, num_wanted - seats)
        num_after = max(0, num_wanted + num_answers - seats)
        if num_after == 0:
            return
        wait_s = self.line.pace.wait_s(num_after)
        if num_after > self._max_queued:
            message = f"{num_before} answers wait, of {self._max_queued} that may"
            raise ResourceExhaustedError(message, wait_s, "overload")
        num_own = min(usage.num_waiting, num_before)  # others of its may have seats at once
        if num_own + num_after - num_before > min(own, self._room(num_before)):
            message = f"{num_own} answers of tenant {usage.name!r} wait, which is all that may now"
            raise ResourceExhaustedError(message, wait_s, "queue")

    def _room(self, num_before: int) -> int:
        """How many answers of one tenant may wait: no more than it leaves to the others.

        The dynamic thresholds of Choudhury and Hahne (IEEE/ACM Transactions on Networking, 1998):
        whoever comes next finds room, and little is kept for tenants that do not come.
        """
        return self._max_queued - num_before if self._is_shared else self._max_queued


def _check_possible(num_answers: int, most: int, limit: str) -> None:
    if num_answers > most:
        raise InvalidRequestError(
            f"the request asks for {num_answers} answers, and no more than {most} can be taken at "
            f"a time ({limit}); send fewer prompts, or a lower n"
        )
