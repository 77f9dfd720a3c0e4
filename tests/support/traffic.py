"""Mixed traffic of several tenants through both edges of a guarded server, as long as one likes."""

import asyncio
import random
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from taskmix_client import (
    AsyncClient,
    InternalError,
    Tenant,
    TenantLimits,
    UnavailableError,
)
from taskmix_client.errors import TaskMixError
from tests.support.guarded import Guarded

NUM_CALLERS = 6
NUM_AT_ONCE = 40
CALL_S = 60.0
TENANTS = ("ops", "alice", "bob", "carol")
CAROL_PER_S = 4.0
BODIES: Sequence[dict[str, Any]] = (
    {"model": "nosuch", "prompt": "x"},
    {"model": "a:b", "prompt": "x"},
    {"model": "a", "prompt": "x", "temperature": -1},
    {"model": "a", "prompt": [1] * 600},
    {"model": "a", "prompt": 3},
)
"""What no caller should send."""


@dataclass(frozen=True)
class Callers:
    """A client of each tenant for each edge; of nobody under the empty name, HTTP alone."""

    grpc: dict[str, AsyncClient]
    http: dict[str, httpx.AsyncClient]
    source: random.Random

    def prompt(self) -> str:
        """Some start alike, so that keys and values are found again."""
        return "once upon a time, in a land where " * 2 + "x" * self.source.randrange(100)

    def mix(self) -> str:
        """One of ever new ones."""
        return f"a:{self.source.random():.6f}+c:{self.source.uniform(-1, 1):.6f}"


Act = Callable[[Callers], Awaitable[object]]


async def whole(callers: Callers) -> None:
    await callers.grpc["alice"].generate(callers.prompt(), mix=callers.mix(), max_tokens=8, n=2)


async def by_name(callers: Callers) -> None:
    await callers.grpc["alice"].generate(callers.prompt(), mix_name="alice-kept", max_tokens=8)


async def streamed(callers: Callers) -> None:
    async for _ in callers.grpc["bob"].stream(callers.prompt(), mix="a:0.5+b:0.5", max_tokens=24):
        pass


async def left(callers: Callers) -> None:
    """Go away in the middle of a stream."""
    chunks = callers.grpc["bob"].stream(callers.prompt(), mix="b", max_tokens=300, ignore_eos=True)
    await anext(chunks)
    await chunks.aclose()


async def late(callers: Callers) -> None:
    """Have no time for the answer."""
    await callers.grpc["alice"].generate(
        callers.prompt(), mix=callers.mix(), max_tokens=300, ignore_eos=True, timeout_s=0.1
    )


async def whole_over_http(callers: Callers) -> int:
    body = {"model": callers.mix(), "prompt": callers.prompt(), "max_tokens": 8}
    return (await callers.http["alice"].post("/v1/completions", json=body)).status_code


async def chat_over_http(callers: Callers) -> int:
    turns = [{"role": "user", "content": callers.prompt()}]
    body = {"model": "base", "messages": turns, "max_tokens": 8, "stream": True}
    return (await callers.http["bob"].post("/v1/chat/completions", json=body)).status_code


async def left_over_http(callers: Callers) -> int:
    body = {"model": "b", "prompt": callers.prompt(), "max_tokens": 300, "ignore_eos": True}
    request = callers.http["bob"].stream("POST", "/v1/completions", json={**body, "stream": True})
    async with request as answer:
        await anext(answer.aiter_lines())
        return answer.status_code


async def malformed(callers: Callers) -> int:
    body = callers.source.choice(BODIES)
    return (await callers.http["alice"].post("/v1/completions", json=body)).status_code


async def refused(callers: Callers) -> None:
    await callers.grpc["bob"].generate(
        "x", mix=callers.source.choice(("c", "a:-1", "a:", "nosuch"))
    )


async def too_often(callers: Callers) -> None:
    calls = [callers.grpc["carol"].generate("x", mix="a", max_tokens=1) for _ in range(8)]
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def without_key(callers: Callers) -> int:
    return (await callers.http[""].get("/v1/models")).status_code


async def listed(callers: Callers) -> int:
    await callers.grpc["carol"].tasks()
    await callers.grpc["alice"].mixes()
    return (await callers.http["carol"].get("/v1/models")).status_code


async def reloaded(callers: Callers) -> None:
    await callers.grpc["ops"].unload_task("c")
    await callers.grpc["ops"].load_task("c")


async def registered(callers: Callers) -> None:
    name = f"alice-{callers.source.randrange(4)}"
    await callers.grpc["alice"].register_mix(name, callers.mix())
    await callers.grpc["alice"].generate("x", mix_name=name, max_tokens=1)
    await callers.grpc["alice"].delete_mix(name)


async def keyed(callers: Callers) -> int:
    """A key is made, used, and revoked."""
    made = await callers.grpc["ops"].create_key("carol")
    headers = {"authorization": f"Bearer {made.secret}"}
    await callers.http[""].get("/v1/models", headers=headers)
    await callers.grpc["ops"].revoke_key(made.key.id)
    return (await callers.http[""].get("/v1/models", headers=headers)).status_code


async def tenanted(callers: Callers) -> None:
    """A tenant comes, asks, and goes."""
    ops = callers.grpc["ops"]
    await ops.create_tenant(Tenant("passing", tasks=("a",)))
    made = await ops.create_key("passing")
    body = {"model": "a", "prompt": "x", "max_tokens": 1}
    headers = {"authorization": f"Bearer {made.secret}"}
    await callers.http[""].post("/v1/completions", json=body, headers=headers)
    await ops.delete_tenant("passing")


CALLED: Sequence[Act] = (
    *(whole, by_name, streamed, left, late, whole_over_http, chat_over_http, left_over_http),
    *(malformed, refused, too_often, without_key, listed),
)
"""What many do at the same time."""

OPERATED: Sequence[Act] = (reloaded, registered, keyed, tenanted)
"""What one does after the other."""


def prepare(guarded: Guarded) -> None:
    """A mix that is kept, and a tenant with a limit."""
    with guarded.client("ops") as ops:
        ops.register_mix("alice-kept", "a:0.5+c:0.5")
        limits = TenantLimits(requests_per_s=CAROL_PER_S)
        ops.update_tenant(Tenant("carol", tasks=("*",), limits=limits))


async def drive(guarded: Guarded, seconds: float, seed: int) -> Counter[str]:
    """Send traffic for so long and let it end; how often each act ended how.

    First a burst, so that the server has all the threads and connections to its database that it
    ever will. Last a task is reloaded, which takes every mix with it that was made up on the way.
    """
    until_s = asyncio.get_running_loop().time() + seconds
    outcomes: Counter[str] = Counter()
    source = random.Random(seed)
    async with calling(guarded, source) as callers:
        await asyncio.gather(*(callers.grpc["ops"].audit(limit=1) for _ in range(NUM_AT_ONCE)))
        acting = [_act(callers, CALLED, until_s, outcomes) for _ in range(NUM_CALLERS)]
        await asyncio.gather(*acting, _act(callers, OPERATED, until_s, outcomes))
        await reloaded(callers)
    return outcomes


@asynccontextmanager
async def calling(guarded: Guarded, source: random.Random) -> AsyncIterator[Callers]:
    """Open connections, and close them all at the end."""
    target, ca = guarded.served.grpc, guarded.authority.ca
    trusted = ssl.create_default_context(cafile=ca)
    async with AsyncExitStack() as opened:
        grpc = {
            name: AsyncClient(target, guarded.keys[name], timeout_s=CALL_S, max_attempts=1, ca=ca)
            for name in TENANTS
        }
        http = {
            name: httpx.AsyncClient(
                base_url=guarded.url, verify=trusted, timeout=CALL_S, headers=_key(guarded, name)
            )
            for name in (*TENANTS, "")
        }
        for client in (*grpc.values(), *http.values()):
            await opened.enter_async_context(client)
        yield Callers(grpc, http, source)


def _key(guarded: Guarded, name: str) -> dict[str, str]:
    return {"authorization": f"Bearer {guarded.keys[name]}"} if name else {}


async def _act(
    callers: Callers, acts: Sequence[Act], until_s: float, outcomes: Counter[str]
) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < until_s:
        act = callers.source.choice(acts)
        try:
            outcome = str(await act(callers) or "ok")
        except (TaskMixError, httpx.HTTPError) as error:
            outcome = type(error).__name__
        outcomes[f"{act.__name__}: {outcome}"] += 1


def is_fault(outcome: str) -> bool:
    """Whether it tells of the server's own failure."""
    end = outcome.partition(": ")[2]
    ours = {InternalError.__name__, UnavailableError.__name__}
    return end in ours or end.startswith("5") or end.endswith(("Timeout", "ProtocolError"))
