"""Who is next: shares by weight, nobody starves, nobody saves up."""

import asyncio
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskmix_server.runtime.admission.line import KEPT_S, Line, Place
from taskmix_server.tenancy.fairness import FIRST_OUTPUT, Cost, Shares


def place(
    tenant: str, name: str = "", *, tokens: float = 10.0, cost: Cost | None = None, **given: int
) -> Place:
    number = next(_numbers)
    fields = {"num_answers": 1, **given}
    return Place(
        name or f"{tenant}{number}", tenant, expected_tokens=tokens, cost=cost or Cost(), **fields
    )


_numbers = iter(range(10**9))


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


class Queue:
    """A line, and the tasks that wait in it."""

    def __init__(self, num_seats: int) -> None:
        self.now_s = 0.0
        self.line = Line(num_seats, lambda: self.now_s)
        self.tasks: dict[Place, asyncio.Task[int]] = {}

    async def join(self, places: Iterable[Place]) -> None:
        for one in places:
            self.tasks[one] = asyncio.create_task(self.line.turn(one))
        await settle()

    def seated(self) -> list[str]:
        return [one.request_id for one, task in self.tasks.items() if task.done()]

    async def leave(self, one: Place, tokens: int = 10) -> None:
        self.tasks.pop(one)
        self.line.leave(one, tokens)
        await settle()

    def oldest(self) -> Place:
        """Of those that have a seat."""
        return next(one for one, task in self.tasks.items() if task.done())


async def test_seats_are_taken_and_given_back() -> None:
    queue = Queue(2)
    first, second, third = (place("a", name) for name in "xyz")
    await queue.join([first, second, third])
    assert queue.seated() == ["x", "y"]
    await queue.leave(first)
    assert queue.seated() == ["y", "z"]
    await queue.leave(second)
    await queue.leave(third)
    assert queue.line.num_taken == 0


async def test_who_leaves_before_its_turn_takes_no_seat() -> None:
    queue = Queue(1)
    first, second, third = (place("a", name) for name in "xyz")
    await queue.join([first, second, third])
    queue.tasks[second].cancel()
    await queue.leave(second, tokens=0)
    served = queue.line.shares.counter("a")
    await queue.leave(first)
    assert queue.seated() == ["z"]
    assert queue.line.shares.counter("a") == served + 10.0


async def test_an_answer_that_the_engine_ended_frees_its_seat_before_it_was_read() -> None:
    queue = Queue(2)
    pair, other = place("a", "pair", num_answers=2), place("a", "other")
    await queue.join([pair, other])
    assert queue.seated() == ["pair"]
    queue.line.end(["pair", "unknown"])
    await settle()
    assert queue.seated() == ["pair", "other"]
    queue.line.end(["pair"])
    assert queue.line.num_taken == 1
    queue.line.end(["pair"])  # told once too often
    await queue.leave(pair)
    assert queue.line.num_taken == 1


async def test_a_caller_orders_its_own_requests_and_no_others() -> None:
    queue = Queue(1)
    await queue.join([place("a", "first")])
    late = [place("a", "later", rank=5), place("b", "other", rank=9), place("a", "soon", rank=-5)]
    await queue.join(late)
    order = []
    while queue.tasks:
        order.append(queue.oldest().request_id)
        await queue.leave(queue.oldest())
    assert order == ["first", "other", "soon", "later"]


async def test_a_seat_is_kept_for_each_tenant_that_had_one_lately() -> None:
    queue = Queue(6)
    for tenant in ("one", "two"):
        await queue.join([place(tenant)])
        await queue.leave(queue.oldest())
    await queue.join([place("greedy") for _ in range(10)])
    assert queue.line.num_taken == 4
    await queue.join([place("one", "1"), place("one", "1 more"), place("new", "3")])
    assert [name for name in queue.seated() if "greedy" not in name] == ["1"]
    assert queue.line.num_taken == 5
    queue.now_s += KEPT_S
    queue.line.end([])
    assert queue.line.num_taken == 6


async def test_half_of_the_seats_are_never_kept() -> None:
    queue = Queue(4)
    for number in range(10):
        await queue.join([place(f"tenant {number}")])
        await queue.leave(queue.oldest())
    await queue.join([place("greedy") for _ in range(10)])
    assert queue.line.num_taken == 2


async def test_alone_every_seat_may_be_taken() -> None:
    queue = Queue(16)
    await queue.join([place("only")])
    await queue.leave(queue.oldest())
    await queue.join([place("only") for _ in range(40)])
    assert queue.line.num_taken == 16


async def test_priorities_in_the_engine_follow_the_counters() -> None:
    queue = Queue(2)
    await queue.join([place("a", tokens=50.0), place("a", tokens=50.0)])
    await queue.join([place("a"), place("b")])
    first, second, of_a, of_b = queue.tasks
    assert [one.priority for one in (first, second)] == [0, 50_000]
    await queue.leave(first, tokens=50)
    assert of_b.priority == 50_000
    await queue.leave(of_b)
    queue.now_s += KEPT_S  # until then a seat is kept for b
    queue.line.end([])
    assert of_a.priority == 100_000


async def drained(queue: Queue, weights: dict[str, float], served: int) -> Counter[str]:
    """Keep every tenant's line full; tokens by tenant after so many requests were served."""
    tokens: Counter[str] = Counter()
    sizes = {tenant: 10 + 13 * number for number, tenant in enumerate(weights)}

    def one(tenant: str) -> Place:
        return place(tenant, tokens=sizes[tenant] / 2, cost=Cost(1.0, weights[tenant]))

    await queue.join(one(tenant) for tenant in weights for _ in range(20))
    for _ in range(served):
        left = queue.oldest()
        await queue.leave(left, tokens=sizes[left.tenant])
        tokens[left.tenant] += sizes[left.tenant]
        await queue.join([one(left.tenant)])
    for task in queue.tasks.values():
        task.cancel()
    await asyncio.gather(*queue.tasks.values(), return_exceptions=True)
    return tokens


@settings(max_examples=15, deadline=None)
@given(
    weights=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=2, max_size=4),
    num_seats=st.integers(1, 4),
)
def test_shares_follow_weights_though_costs_were_guessed_wrong(
    weights: list[float], num_seats: int
) -> None:
    by_tenant = {f"t{number}": weight for number, weight in enumerate(weights)}
    tokens = asyncio.run(drained(Queue(num_seats), by_tenant, served=400))
    total, whole = tokens.total(), sum(weights)
    for tenant, weight in by_tenant.items():
        assert tokens[tenant] / total == pytest.approx(weight / whole, abs=0.05)


@settings(max_examples=50)
@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0.0, 100.0), st.floats(-50.0, 50.0)),
        max_size=60,
    )
)
def test_whoever_was_idle_is_no_further_ahead_than_who_is_served_now(
    services: list[tuple[str, float, float]],
) -> None:
    shares = Shares()
    for tenant, charge, difference in services:
        shares.enter(tenant)
        shares.serve(tenant, charge)
        shares.correct(tenant, difference)
    for tenant in ("a", "b", "c", "new"):
        shares.enter(tenant)
        assert shares.counter(tenant) >= shares.time


async def test_a_tenant_that_was_idle_saved_nothing_up() -> None:
    queue = Queue(1)
    await queue.join([place("late", "early")])
    await queue.leave(queue.oldest())
    await queue.join([place("busy") for _ in range(50)])
    for _ in range(30):
        await queue.leave(queue.oldest())
    await queue.join([place("late") for _ in range(20)])
    tenants = []
    for _ in range(20):
        tenants.append(queue.oldest().tenant)
        await queue.leave(queue.oldest())
    assert 8 <= tenants.count("late") <= 12
    for task in queue.tasks.values():
        task.cancel()


def test_output_is_expected_as_it_was_before() -> None:
    shares = Shares()
    assert shares.expected_output("a", 10) == 10.0
    assert shares.expected_output("a", 10**6) == FIRST_OUTPUT
    for _ in range(100):
        shares.learn_output("a", 20.0)
    assert shares.expected_output("a", 10**6) == pytest.approx(20.0, abs=0.1)
    assert shares.expected_output("b", 10**6) == FIRST_OUTPUT


def test_a_token_under_a_mix_costs_more_and_weight_makes_it_cheaper() -> None:
    assert Cost(per_token=1.5, weight=3.0).of(10) == pytest.approx(5.0)
