"""What a request that was let in holds, and what it is charged for being served."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from taskmix_server.errors import InvalidRequestError
from taskmix_server.runtime.admission.line import Line, Place
from taskmix_server.runtime.experiments.copies import Copy
from taskmix_server.tenancy.bucket import Bucket
from taskmix_server.tenancy.fairness import Cost
from taskmix_server.tenancy.tenant import Tenant


@dataclass(slots=True)
class Usage:
    """What a tenant uses now: answers, `num_open` of which `num_waiting` have no seat yet."""

    tenant_id: str
    name: str
    requests: Bucket = field(default_factory=Bucket)
    tokens: Bucket = field(default_factory=Bucket)
    num_open: int = 0
    num_waiting: int = 0


@dataclass(slots=True, eq=False)
class Ticket:
    """A request that was let in. One event loop only.

    num_unseated: of its answers, over all of its prompts. rank: its caller's own priority.
    cost_per_token: what a token under its mix counts, set once that is known. refusal: why one of
    its prompts was turned away after all. copy: of its first prompt, for shadow arms.
    """

    line: Line
    tenant: Tenant
    usage: Usage
    num_unseated: int
    rank: int
    cost_per_token: float = 1.0
    refusal: InvalidRequestError | None = None
    copy: Copy | None = None

    def __post_init__(self) -> None:
        self.usage.num_open += self.num_unseated
        self.usage.num_waiting += self.num_unseated

    @contextmanager
    def turn(self, request_id: str, max_tokens: int, num_answers: int = 1) -> Iterator["Turn"]:
        """A prompt's way through the engine, to so many answers of at most `max_tokens` each.

        request_id: by which the engine tells that an answer has ended.
        """
        shares, tenant = self.line.shares, self.tenant
        place = Place(
            request_id,
            tenant.id,
            num_answers,
            num_answers * shares.expected_output(tenant.id, max_tokens),
            Cost(self.cost_per_token, tenant.limits.weight or 1.0),
            self.rank,
        )
        turn = Turn(self, place)
        try:
            yield turn
        finally:
            turn.end()

    def take_copy(self) -> Copy | None:
        """What the first prompt that asks is to fill in, if anything."""
        copy, self.copy = self.copy, None
        return copy

    def check_prompt(self, num_tokens: int) -> None:
        """Refuse a prompt that is longer than the tenant's may be."""
        most = self.tenant.limits.max_prompt_tokens
        if most is not None and num_tokens > most:
            self.refusal = InvalidRequestError(
                f"the prompt has {num_tokens} tokens; tenant {self.tenant.name!r} may send at most "
                f"{most} (max_prompt_tokens)"
            )
            raise self.refusal

    def seat(self, num_answers: int) -> None:
        """So many answers wait no longer; beam search asks for more than the request said."""
        num_seated = min(num_answers, self.num_unseated)
        self.num_unseated -= num_seated
        self.usage.num_waiting -= num_seated

    def charge(self, num_tokens: int) -> None:
        """Take served tokens out of the tenant's bucket."""
        rate = self.tenant.limits.tokens_per_s
        if rate is not None:
            self.usage.tokens.spend(rate, num_tokens)


class Turn:
    """One prompt's wait for its turn, and the count of what it was served."""

    def __init__(self, ticket: Ticket, place: Place) -> None:
        self._ticket = ticket
        self._place = place
        self._is_in_line = False
        self._num_prompt_tokens = 0
        self._num_output_tokens = 0

    async def wait(self, num_prompt_tokens: int) -> int:
        """Wait until the engine may have the prompt; its priority there."""
        self._ticket.check_prompt(num_prompt_tokens)
        self._place.expected_tokens += num_prompt_tokens
        self._is_in_line = True
        priority = await self._ticket.line.turn(self._place)
        self._ticket.seat(self._place.num_answers)
        return priority

    def count(self, num_prompt_tokens: int, num_output_tokens: int) -> None:
        """Charge for what the prompt was served so far, as its answer and metrics count it."""
        before = self._num_tokens
        self._num_prompt_tokens = num_prompt_tokens
        self._num_output_tokens = num_output_tokens
        self._ticket.charge(self._num_tokens - before)

    def end(self) -> None:
        """Leave the line, or the seats that are left, and settle what was expected."""
        if not self._is_in_line:
            return
        place, line = self._place, self._ticket.line
        line.leave(place, self._num_tokens)
        if self._num_output_tokens:
            mean = self._num_output_tokens / place.num_answers
            line.shares.learn_output(place.tenant, mean)

    @property
    def _num_tokens(self) -> int:
        return self._num_prompt_tokens + self._num_output_tokens
