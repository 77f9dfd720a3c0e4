"""Shadow arms on a real engine: what they tell, what they cost, and when they give way."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import openai
import pytest

from taskmix_client import Arm, AsyncClient, Client, ExperimentDesign, ShadowArm
from taskmix_server.runtime.experiments.shadows import MAX_PENDING
from tests.support.served import Served, metrics
from tests.support.waiting import eventually

NUM_TOKENS = 240
NUM_ROUNDS = 40
NUM_REQUESTS = 4
MAX_THINK_S = 1.6
COST = 1.05
NUM_CALLERS = 12
NUM_CALLS = 8


@pytest.fixture
def sdk(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


@contextmanager
def running(client: Client, name: str, *shadows: ShadowArm) -> Iterator[None]:
    """An experiment of one arm, which runs as long as the block."""
    client.create_experiment(ExperimentDesign(name, (Arm("control", "c", 1.0),), shadows=shadows))
    client.start_experiment(name)
    try:
        yield
    finally:
        client.stop_experiment(name)


def copies(served: Served) -> dict[str, float]:
    """Copies so far, by what became of them."""
    name = 'taskmix_shadows_total{outcome="'
    seen = metrics(served.http)
    return {
        key.removeprefix(name).removesuffix('"}'): number
        for key, number in seen.items()
        if key.startswith(name)
    }


def wait_for_copies(served: Served, num_ok: float) -> None:
    """Until so many copies have been answered."""
    eventually(lambda: copies(served).get("ok", 0.0) >= num_ok)


def test_what_a_shadow_tells(served: Served, client: Client, sdk: openai.OpenAI) -> None:
    """Of equal mixes: all tokens agree, and greedy tokens are likelier than under another one."""
    shadows = ShadowArm("same", "c", rate=1.0), ShadowArm("other", "c:-2", rate=1.0)
    with running(client, "told", *shadows):
        before = copies(served).get("ok", 0.0)
        client.generate("Hello", experiment="told", subject="ann", max_tokens=8, temperature=0.0)
        wait_for_copies(served, before + 2)
        sdk.completions.create(
            model="experiment:told", prompt="Hello", user="bob", max_tokens=8, temperature=0.0
        )
        wait_for_copies(served, before + 4)
        other, same = client.experiment_results("told").shadows
        assert (other.arm, same.arm) == ("other", "same")
        for shadow in (other, same):
            assert (shadow.num_requests, shadow.error_rate) == (2, 0.0)
        assert (same.agreement, same.tokens) == (1.0, 8.0)
        assert other.agreement is not None
        assert other.agreement < 1.0
        assert other.served_logprob is not None
        assert same.served_logprob is not None
        assert other.served_logprob < same.served_logprob < 0.0


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_shadow_costs_little_where_there_is_room(served: Served, client: Client) -> None:
    """Callers who come now and then wait as long with every request copied as with none.

    The 95th percentiles are of all answers, so that no slow round is overlooked. Plain requests are
    measured twice, in short turns with the others, since machines have slow seconds: where those
    two differ by more than a copy may cost, nothing can be said.
    """
    copied = running(client, "copied", ShadowArm("next", "a:0.6+c:0.4", rate=1.0))
    with running(client, "plain"), running(client, "again"), copied:
        before = copies(served)
        waits: dict[str, list[float]] = {"plain": [], "copied": [], "again": []}
        async with AsyncClient(served.grpc, timeout_s=60) as asking:
            for number in range(NUM_ROUNDS):
                for name in random.Random(number).sample(sorted(waits), len(waits)):
                    waits[name] += await round_of(asking, name, seed=number)
        after = copies(served)
        num_copied = NUM_ROUNDS * NUM_REQUESTS
        assert after["ok"] - before.get("ok", 0.0) > num_copied / 4
        p95_s = {name: float(np.quantile(seconds, 0.95)) for name, seconds in waits.items()}
        one, other = sorted((p95_s["plain"], p95_s["again"]))
        assert other <= COST * one, f"the machine is not quiet: {p95_s}"
        assert p95_s["copied"] <= COST * one, (p95_s, metrics(served.http)["taskmix_merges"], after)


async def round_of(asking: AsyncClient, experiment: str, seed: int) -> list[float]:
    """Seconds of each answer to a caller who thinks in between; the same thoughts for a seed.

    The first one is left out: another experiment's request came before it.
    """
    draw = random.Random(seed)
    waits = []
    for _ in range(NUM_REQUESTS):
        await asyncio.sleep(draw.uniform(0.0, MAX_THINK_S))
        started_s = time.monotonic()
        await asking.generate(
            "x", experiment=experiment, subject="ann", max_tokens=NUM_TOKENS, ignore_eos=True
        )
        waits.append(time.monotonic() - started_s)
    return waits[1:]


async def test_shadows_give_way_under_load(served: Served, client: Client) -> None:
    """While the engine is never left alone no copy is begun, and every request is answered."""
    with running(client, "loaded", ShadowArm("next", "a:0.6+c:0.4", rate=1.0)):
        is_over = asyncio.Event()

        async def hold(asking: AsyncClient, num_tokens: int, began: asyncio.Event) -> None:
            """One long request after another, so that some are open at any moment."""
            while not is_over.is_set():
                async for _ in asking.stream("x", mix="c", max_tokens=num_tokens, ignore_eos=True):
                    began.set()

        async def call(asking: AsyncClient, number: int) -> None:
            for count in range(NUM_CALLS):
                await asking.generate(
                    "x",
                    experiment="loaded",
                    subject=f"s{number}",
                    max_tokens=8 + count,
                    ignore_eos=True,
                )

        async with AsyncClient(served.grpc, timeout_s=60) as asking:
            begun = [asyncio.Event() for _ in range(4)]
            holders = [
                asyncio.create_task(hold(asking, 200 + 70 * number, began))
                for number, began in enumerate(begun)
            ]
            await asyncio.gather(*(began.wait() for began in begun))
            before = copies(served)
            await asyncio.gather(*(call(asking, number) for number in range(NUM_CALLERS)))
            during = copies(served)
            is_over.set()
            await asyncio.gather(*holders)
        grown = {key: during.get(key, 0.0) - before.get(key, 0.0) for key in ("ok", "busy", "full")}
        num_calls = NUM_CALLERS * NUM_CALLS
        assert (grown["ok"], grown["busy"]) == (0.0, 0.0)
        assert grown["full"] >= num_calls - MAX_PENDING
        (traffic,) = client.experiment_results("loaded").traffic
        assert traffic.num_requests == num_calls
        wait_for_copies(served, during.get("ok", 0.0) + 3)
