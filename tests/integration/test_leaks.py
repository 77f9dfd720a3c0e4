"""After any load the server is as it was: no request, no reference and no block is left behind."""

import asyncio
import random

import httpx
import pytest

from taskmix_client import AsyncClient
from tests.support.served import Served, metrics
from tests.support.waiting import eventually

NUM_REQUESTS = 500
CONCURRENCY = 32
MIXES = ("base", "a", "b:0.5", "a:0.7+b:0.3", "c:-1", "a:0.1+b:0.2+c:0.3")
GAUGES = (
    "taskmix_requests_running",
    "taskmix_requests_waiting",
    "taskmix_task_references",
    "taskmix_kv_blocks_used",
)


def load(served: Served) -> dict[str, float]:
    seen = metrics(served.http)
    return {name: seen[name] for name in GAUGES}


def is_busy(seen: dict[str, float]) -> bool:
    names = ("taskmix_requests_running", "taskmix_kv_blocks_used", "taskmix_task_references")
    return all(seen[name] for name in names)


def assert_idle(served: Served) -> None:
    eventually(lambda: not any(load(served).values()))


@pytest.fixture(autouse=True)
def starts_idle(served: Served) -> None:
    assert_idle(served)


async def test_many_requests_a_third_of_them_cancelled(served: Served) -> None:
    rng = random.Random(0)
    slots = asyncio.Semaphore(CONCURRENCY)

    async def run(client: AsyncClient, number: int) -> str:
        mix = rng.choice(MIXES) if number % 5 else f"a:{number / 1000}"
        prompt = f"request {number} " + "x" * rng.randrange(40)
        async with slots:
            if number % 3:
                answer = await client.generate(prompt, mix=mix, max_tokens=rng.randint(1, 6))
                return str(answer.finish_reason)
            chunks = client.stream(prompt, mix=mix, max_tokens=400, ignore_eos=True)
            await anext(chunks)
            await chunks.aclose()
            return "cancelled"

    async with AsyncClient(served.grpc, timeout_s=240) as client:
        running = [asyncio.create_task(run(client, number)) for number in range(NUM_REQUESTS)]
        await asyncio.to_thread(eventually, lambda: is_busy(load(served)))
        outcomes = await asyncio.gather(*running)
    assert outcomes.count("cancelled") == (NUM_REQUESTS + 2) // 3
    assert set(outcomes) <= {"cancelled", "length", "stop"}
    assert_idle(served)


async def has_begun(served: Served, num_references: int) -> None:
    """Wait until the requests in flight use tasks this often."""
    name = "taskmix_task_references"
    await asyncio.to_thread(eventually, lambda: load(served)[name] == num_references)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_callers_that_leave_over_http(served: Served, is_stream: bool) -> None:
    body = {"model": "a+b", "prompt": "x", "max_tokens": 480, "ignore_eos": True}
    async with httpx.AsyncClient(base_url=served.http, timeout=60) as http:
        with served.frozen():
            request = http.post("/v1/completions", json={**body, "stream": is_stream})
            waiting = asyncio.create_task(request)
            await has_begun(served, 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert_idle(served)


async def test_callers_that_leave_over_grpc(served: Served) -> None:
    async with AsyncClient(served.grpc, timeout_s=60) as client:
        with served.frozen():
            waiting = asyncio.create_task(
                client.generate("x", mix="a+b", max_tokens=480, ignore_eos=True)
            )
            await has_begun(served, 2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert_idle(served)


async def test_as_many_mixes_as_sequences_at_once(served: Served) -> None:
    async with AsyncClient(served.grpc, timeout_s=120) as client:
        mixes = [f"a:{0.1 * number}+b:{1 - 0.1 * number}" for number in range(16)]
        answers = await asyncio.gather(
            *(client.generate("Hello", mix=mix, max_tokens=8, temperature=0.0) for mix in mixes)
        )
        alone = [
            await client.generate("Hello", mix=mix, max_tokens=8, temperature=0.0) for mix in mixes
        ]
    assert len({answer.mix_digest for answer in answers}) == 16
    assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in alone]
    assert_idle(served)


async def test_labels_do_not_grow_with_mixes(served: Served) -> None:
    async with AsyncClient(served.grpc, timeout_s=60) as client:
        await client.generate("x", mix="a:0.5", max_tokens=1)
        before = set(metrics(served.http))
        await asyncio.gather(
            *(client.generate("x", mix=f"a:0.5{n}1", max_tokens=1) for n in range(8))
        )
    after = set(metrics(served.http))
    assert after == before
    assert not [name for name in after if "lora" in name or "mix:" in name]
