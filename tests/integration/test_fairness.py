"""Tenants under load, on one real server whose engine is the bottleneck.

What is compared was measured in one run, but callers and server share the cores with whatever else
runs: a comparison is repeated if it was disturbed.
"""

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from taskmix_client import AsyncClient
from tests.support.load import Waits, flooding, keep_asking
from tests.support.served import Served, serving, taskmix
from tests.support.tiny import TinyModel, make_base, make_finetune

SEATS = 4
QUEUE = 8
VICTIMS = ("first", "second")
NUM_TENANTS = 1 + len(VICTIMS)
CALLERS = SEATS + QUEUE // 2
"""As many requests as one tenant may have running and waiting."""

LONG, SHORT = 60, 40
"""Tokens of an answer: long ones leave the processor to the engine."""

DEEP = TinyModel(num_layers=24)
"""Its steps take about as long for four answers as for two, as those of a large model do."""


@dataclass(frozen=True)
class Shared:
    """A server and the keys of its tenants."""

    served: Served
    keys: dict[str, str]

    def client(self, tenant: str) -> AsyncClient:
        return AsyncClient(self.served.grpc, self.keys[tenant], timeout_s=60, max_attempts=1)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    state, models = tmp_path_factory.mktemp("shared"), tmp_path_factory.mktemp("deep")
    base, bank = make_base(models / "base", DEEP), models / "bank"
    task = f"--task=a={make_finetune(base, models / 'a', seed=1, only='mlp')}"
    taskmix("bank", "build", "--base", base, task, "--out", bank)
    taskmix("tenants", "create", "ops", "--role", "admin", "--state", state)
    keys = {}
    for tenant in ("greedy", *VICTIMS):
        taskmix("tenants", "create", tenant, "--state", state)
        keys[tenant] = taskmix("keys", "create", tenant, "--state", state).strip()
    flags = ("--max-num-seqs", str(SEATS), "--max-queued", str(QUEUE))
    with serving(base, bank, state, *flags) as served:
        yield Shared(served, keys)


def quantile(values: list[float], share: float) -> float:
    """The smallest value that so large a share of them does not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


async def callers(
    shared: Shared, tenants: tuple[str, ...], num_tokens: int, seconds: float
) -> Waits:
    """One caller for each mention of a tenant, each with one request after another."""
    waits = Waits()
    clients = [shared.client(tenant) for tenant in tenants]
    asking = [
        keep_asking(client, f"{tenant} {number}", num_tokens, seconds, waits)
        for number, (tenant, client) in enumerate(zip(tenants, clients, strict=True))
    ]
    await asyncio.gather(*asking)
    for client in clients:
        await client.close()
    return waits


def ask_for(shared: Shared, tenants: tuple[str, ...], num_tokens: int, seconds: float) -> Waits:
    return asyncio.run(callers(shared, tenants, num_tokens, seconds))


@pytest.mark.flaky(reruns=2)
def test_a_flood_slows_nobody_else_and_gets_its_own_share(shared: Shared) -> None:
    """20 times its share, while two others ask one request after another."""
    ask_for(shared, VICTIMS, SHORT, 1.0)  # keys are verified and the engine is warm
    capacity = len(ask_for(shared, ("greedy",) * CALLERS, LONG, 6.0).whole_s) / 6.0
    share = capacity / NUM_TENANTS
    alone = ask_for(shared, VICTIMS, LONG, 8.0)
    with flooding(shared.served.grpc, shared.keys["greedy"], 20 * share, LONG, 12.0) as flood:
        under = ask_for(shared, VICTIMS, LONG, 10.0)
    assert under.num_refused == 0
    assert flood[0].sent_per_s >= 19 * share, "it was no flood"
    slowdown = quantile(under.whole_s, 0.95) / quantile(alone.whole_s, 0.95)
    assert slowdown <= 1.5
    assert flood[0].answers_per_s >= share


@pytest.mark.flaky(reruns=2)
def test_three_times_overload_delays_no_first_token(shared: Shared) -> None:
    """As many callers as are let in, then three times as many, who come back when they are told."""
    ask_for(shared, ("greedy",), SHORT, 1.0)
    limit = ask_for(shared, ("greedy",) * CALLERS, SHORT, 6.0)
    over = ask_for(shared, ("greedy",) * (3 * CALLERS), SHORT, 8.0)
    assert over.num_refused > CALLERS
    ratio = quantile(over.first_token_s, 0.99) / quantile(limit.first_token_s, 0.99)
    assert ratio <= 2.0
