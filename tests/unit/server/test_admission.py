"""Who is let in, and what those who are not are told."""

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from taskmix_composer.mix import Mix
from taskmix_server.errors import InvalidRequestError, ResourceExhaustedError
from taskmix_server.runtime.admission.admission import Admission, Ask
from taskmix_server.runtime.admission.costs import TokenCosts
from taskmix_server.runtime.admission.tickets import Ticket
from taskmix_server.tenancy.principal import Principal
from taskmix_server.tenancy.tenant import Limits, Tenant
from tests.unit.server.conftest import Parts


def principal(name: str = "t", **limits: float) -> Principal:
    return Principal(Tenant(name, id=name, limits=Limits(**limits)))  # type: ignore[arg-type]


@pytest.fixture
def held() -> Iterator[ExitStack]:
    with ExitStack() as opened:
        yield opened


def refusal(
    admission: Admission, caller: Principal, num_answers: int = 1
) -> ResourceExhaustedError:
    with (
        pytest.raises(ResourceExhaustedError) as caught,
        admission.admitted(caller, Ask(num_answers)),
    ):
        pass
    assert caught.value.retry_after_s > 0.0
    return caught.value


def enter(held: ExitStack, admission: Admission, caller: Principal, count: int = 1) -> list[Ticket]:
    return [held.enter_context(admission.admitted(caller, Ask())) for _ in range(count)]


async def seat(held: ExitStack, ticket: Ticket, name: str) -> None:
    turn = held.enter_context(ticket.turn(name, max_tokens=5))
    await asyncio.wait_for(turn.wait(3), 1.0)


def test_requests_per_second(held: ExitStack) -> None:
    admission = Admission(8, 100, is_shared=True)
    enter(held, admission, principal(requests_per_s=2.0), 2)
    refused = refusal(admission, principal(requests_per_s=2.0))
    assert (refused.reason, refused.retry_after_s) == ("requests", pytest.approx(0.5, abs=0.05))
    enter(held, admission, principal("other", requests_per_s=2.0))


def test_a_refused_request_uses_nothing_up(held: ExitStack) -> None:
    admission = Admission(8, 100, is_shared=True)
    limited = principal(requests_per_s=1e-6, max_concurrency=1)
    (ticket,) = enter(held, admission, principal(max_concurrency=1))
    assert refusal(admission, limited).reason == "concurrency"
    held.close()
    enter(held, admission, limited)
    assert ticket.usage.num_open == 1


def test_a_request_that_was_counted_is_not_counted_again(held: ExitStack) -> None:
    admission = Admission(8, 100, is_shared=True)
    caller = principal(requests_per_s=1e-6)
    admission.count(caller)
    held.enter_context(admission.admitted(caller, Ask(), is_counted=True))
    with pytest.raises(ResourceExhaustedError, match="requests"):
        admission.count(caller)


@pytest.mark.parametrize("limits", [{"max_concurrency": 1}, {"max_queued": 1}], ids=str)
def test_what_could_not_be_let_in_is_not_counted(held: ExitStack, limits: dict[str, float]) -> None:
    admission = Admission(1, 100, is_shared=True)
    enter(held, admission, principal(), 2)
    limited = principal(requests_per_s=1e-6, **limits)
    with pytest.raises(ResourceExhaustedError, match="answers"):
        admission.count(limited)
    held.close()
    admission.count(limited)


def test_what_was_counted_still_needs_room(held: ExitStack) -> None:
    admission = Admission(8, 100, is_shared=True)
    caller = principal(max_concurrency=2)
    enter(held, admission, caller)
    admission.count(caller)
    with (
        pytest.raises(ResourceExhaustedError, match="1 answers open, of 2"),
        admission.admitted(caller, Ask(2), is_counted=True),
    ):
        pass


async def test_a_tenant_in_debt_waits_until_it_is_paid(held: ExitStack) -> None:
    admission = Admission(8, 100, is_shared=True)
    caller = principal(tokens_per_s=10.0)
    (ticket,) = enter(held, admission, caller)
    with ticket.turn("a", max_tokens=50) as turn:
        await turn.wait(20)
        enter(held, admission, caller)  # nothing was served yet
        turn.count(20, 1)
        turn.count(20, 40)
    refused = refusal(admission, caller)
    assert refused.reason == "tokens"
    assert refused.retry_after_s == pytest.approx((60 - 10 + 1) / 10, abs=0.05)


def test_limits_that_change_count_for_the_next_request(held: ExitStack) -> None:
    admission = Admission(8, 100, is_shared=True)
    enter(held, admission, principal(), 3)
    assert refusal(admission, principal(max_concurrency=3)).reason == "concurrency"
    enter(held, admission, principal(max_concurrency=4))


@pytest.mark.parametrize("limits", [{"max_concurrency": 3}, {"max_queued": 1}])
def test_what_could_never_be_let_in_is_invalid(limits: dict[str, float]) -> None:
    admission = Admission(2, 100, is_shared=True)
    with (
        pytest.raises(InvalidRequestError, match=next(iter(limits))),
        admission.admitted(principal(**limits), Ask(4)),
    ):
        pass


async def test_queued_requests_of_a_tenant(held: ExitStack) -> None:
    admission = Admission(2, 100, is_shared=True)
    caller = principal(max_queued=3)
    seated = enter(held, admission, caller, 2)
    for number, ticket in enumerate(seated):
        await seat(held, ticket, str(number))
    enter(held, admission, caller, 3)
    assert refusal(admission, caller).reason == "queue"
    enter(held, admission, principal("other"))
    assert admission.waiting_by_tenant() == {"t": 3, "other": 1}


async def test_a_backlog_leaves_room_in_the_queue_to_others(held: ExitStack) -> None:
    admission = Admission(2, 16, is_shared=True)
    for number, ticket in enumerate(enter(held, admission, principal("greedy"), 2)):
        await seat(held, ticket, str(number))
    enter(held, admission, principal("greedy"), 8)
    assert refusal(admission, principal("greedy")).reason == "queue"
    enter(held, admission, principal("one"), 4)
    assert refusal(admission, principal("one")).reason == "queue"
    enter(held, admission, principal("two"), 2)


async def test_without_tenants_the_whole_queue_is_the_caller_s(held: ExitStack) -> None:
    admission = Admission(2, 16, is_shared=False)
    for number, ticket in enumerate(enter(held, admission, principal(), 2)):
        await seat(held, ticket, str(number))
    enter(held, admission, principal(), 16)
    assert refusal(admission, principal()).reason == "overload"


async def test_answers_that_end_tell_when_to_come_back(held: ExitStack) -> None:
    admission = Admission(1, 2, is_shared=False)
    now_s = [0.0]
    admission.line.pace._now = lambda: now_s[0]
    for number in range(5):
        with admission.admitted(principal(), Ask()) as ticket, ticket.turn(str(number), 5) as turn:
            await turn.wait(3)
            now_s[0] += 0.5
    (first, *_) = enter(held, admission, principal(), 3)
    await seat(held, first, "seated")
    assert refusal(admission, principal()).retry_after_s == pytest.approx(3 * 0.5)


async def test_leaving_gives_everything_back(held: ExitStack) -> None:
    admission = Admission(2, 100, is_shared=True)
    tickets = enter(held, admission, principal(), 5)
    for number, ticket in enumerate(tickets[:2]):
        await seat(held, ticket, str(number))
    assert (admission.num_waiting, admission.line.num_taken) == (3, 2)
    held.close()
    assert (admission.num_waiting, admission.line.num_taken) == (0, 0)
    assert tickets[0].usage.num_open == 0


async def test_long_prompts(held: ExitStack) -> None:
    (ticket,) = enter(held, Admission(1, 1, is_shared=True), principal(max_prompt_tokens=4))
    await seat(held, ticket, "short")
    with (
        pytest.raises(InvalidRequestError, match="max_prompt_tokens"),
        ticket.turn("long", 5) as turn,
    ):
        await turn.wait(5)
    assert ticket.refusal is not None


async def test_a_charge_is_what_was_served(held: ExitStack) -> None:
    admission = Admission(1, 10, is_shared=True)
    shares = admission.line.shares
    (ticket,) = enter(held, admission, principal(weight=2.0))
    ticket.cost_per_token = 1.5
    with ticket.turn("a", max_tokens=1000) as turn:
        await turn.wait(10)
        assert shares.counter("t") > 10 * 1.5 / 2  # what is expected counts at once
        turn.count(10, 7)
    assert shares.counter("t") == pytest.approx(17 * 1.5 / 2)


def test_a_mix_costs_what_its_deltas_are_of_the_base(parts: Parts) -> None:
    costs = TokenCosts(parts.tasks, base_bytes=400)
    for mix, cost in (("base", 1.0), ("head", 1.25), ("head:0.5+body", 1.5)):
        assert costs.of(parts.variants.resolve(Mix.parse(mix))) == cost
