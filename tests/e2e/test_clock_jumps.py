"""The wall clock of a server's processes is set while they work, forward and far back."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

import taskmix_client as tm
from taskmix_client import Client, Tenant, TenantLimits
from tests.support.clock import WallClock
from tests.support.models import make_models
from tests.support.served import Served, admin_key, metrics, serving

BACK_H = -400 * 24
FORWARD_H = 2
EXPIRY_H = 30 * 24  # later than the other tests go
NUM_TOKENS = 400
RATE = 0.5
LONG_S = 300.0
PROMPT = "Once upon a time"

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> WallClock:
    return WallClock.at(tmp_path_factory.mktemp("clock") / "offset")


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def key(state: Path) -> str:
    """The key of an admin, which does not expire."""
    return admin_key(state)


@pytest.fixture(scope="module")
def served(
    clock: WallClock, state: Path, key: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    models = make_models(tmp_path_factory.mktemp("models"))
    environment = clock.environment
    with serving(
        models.base, models.bank, state, "--metrics-open", environment=environment
    ) as server:
        yield server


@pytest.fixture(scope="module")
def ops(served: Served, key: str) -> Iterator[Client]:
    with Client(served.grpc, key, timeout_s=60, max_attempts=1) as opened:
        yield opened


@pytest.fixture(autouse=True)
def right_again(clock: WallClock) -> Iterator[None]:
    yield
    clock.set_off(hours=0)


def streamed(client: Client, begun: Callable[[], None]) -> int:
    """The number of tokens of a stream; `begun` is called with the first of them."""
    chunks = client.stream(PROMPT, mix="a", max_tokens=NUM_TOKENS, ignore_eos=True)
    first = next(chunks)
    begun()
    return len(first.token_ids) + sum(len(chunk.token_ids) for chunk in chunks)


def registered(ops: Client, name: str) -> datetime:
    """When the server says that it was changed, right after it was."""
    ops.register_mix(name, "a:0.5")
    return ops.audit(limit=1)[0].at


@pytest.mark.parametrize("hours", [FORWARD_H, BACK_H])
def test_a_stream_goes_on(served: Served, ops: Client, clock: WallClock, hours: int) -> None:
    started_s = time.monotonic()

    def set_off() -> None:
        with served.frozen():  # what is in flight stays in flight
            clock.set_off(hours=hours)

    assert streamed(ops, set_off) == NUM_TOKENS
    answer = ops.generate(PROMPT, mix="a", max_tokens=2)
    assert 0.0 <= answer.timings.ttft_s <= answer.timings.total_s < time.monotonic() - started_s
    with httpx.Client(base_url=served.http) as http:
        assert http.get("/readyz").status_code == 200


def test_durations_and_waits_are_not_of_the_wall_clock(
    served: Served, ops: Client, clock: WallClock
) -> None:
    """Whoever was told to come back is served when it does, however the clock was set meanwhile."""
    ops.create_tenant(Tenant("users", tasks=("a",), limits=TenantLimits(requests_per_s=RATE)))
    secret = ops.create_key("users").secret
    with Client(served.grpc, secret, timeout_s=60) as patient:
        patient.generate(PROMPT, mix="a", max_tokens=1)
        with ThreadPoolExecutor() as threads:
            asked_s = time.monotonic()
            waiting = threads.submit(patient.generate, PROMPT, mix="a", max_tokens=1)
            clock.set_off(hours=BACK_H)
            assert waiting.result().token_ids
            assert time.monotonic() - asked_s < 10 / RATE
    sums = {
        name: value
        for name, value in metrics(served.http).items()
        if name.startswith("taskmix_") and name.partition("{")[0].endswith("_seconds_sum")
    }
    assert sums
    assert all(0.0 <= value < LONG_S for value in sums.values()), sums


def test_a_key_that_expired_does_not_come_back(
    served: Served, ops: Client, clock: WallClock
) -> None:
    ops.create_tenant(Tenant("guests", tasks=("a",)))
    expires_at = datetime.now(UTC) + timedelta(hours=EXPIRY_H)
    secret = ops.create_key("guests", expires_at).secret
    with Client(served.grpc, secret, timeout_s=60, max_attempts=1) as guest:
        assert guest.tasks()
        for hours in (2 * EXPIRY_H, BACK_H, 0):
            clock.set_off(hours=hours)
            with pytest.raises(tm.UnauthenticatedError):
                guest.tasks()
            assert ops.tasks(), "a key that does not expire goes on"


def test_changes_stay_in_the_order_they_were_made(ops: Client, clock: WallClock) -> None:
    moments = []
    for number, hours in enumerate((0, FORWARD_H, BACK_H)):
        clock.set_off(hours=hours)
        moments.append(registered(ops, f"mix-{number}"))
    now, later, earlier = moments
    assert later > now > earlier, "the server goes by the clock that is set"
    listed = [record.subject for record in ops.audit(limit=3)]
    assert listed == ["mix-2", "mix-1", "mix-0"]
