"""How long streaming requests wait for their first token and between tokens."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from openai import AsyncOpenAI

from benchmarks.record import spread, tail
from benchmarks.rounds import Effort, opened
from benchmarks.servers import Running
from benchmarks.workloads import prompts
from taskmix_client import AsyncClient

NUM_CALLERS = 16
"""Streams open at once: each caller asks again as soon as its answer has ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Milliseconds to the first token and between tokens, over all streams.

    `load_s` is the time of a task's load and is empty where none was loaded meanwhile.
    """

    server: str
    cores: str
    num_streams: int
    ttft_ms: Mapping[str, float]
    gap_ms: Mapping[str, float]
    num_loads: int
    load_s: Mapping[str, float]


@dataclass(slots=True)
class Stream:
    """When one request was sent and when its pieces came, in seconds."""

    sent_s: float
    came_s: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.came_s[0] - self.sent_s

    @property
    def gaps_s(self) -> list[float]:
        return [later - earlier for earlier, later in itertools.pairwise(self.came_s)]


async def latency(
    server: Running,
    name: str,
    cores: str,
    rows: Sequence[str],
    effort: Effort,
    loaded: Sequence[str] = (),
) -> Latency:
    """Stream requests that name `rows` in turn while `loaded` are unloaded and loaded in a loop."""
    await streams(server, rows, NUM_CALLERS, effort.answer_tokens)  # not counted
    async with loading(server, loaded) as loads_s:
        found = await streams(server, rows, effort.num_streams, effort.answer_tokens)
    return Latency(
        server=name,
        cores=cores,
        num_streams=len(found),
        ttft_ms=tail([1000 * stream.ttft_s for stream in found]),
        gap_ms=tail([1000 * gap_s for stream in found for gap_s in stream.gaps_s]),
        num_loads=len(loads_s),
        load_s=spread(loads_s) if len(loads_s) > 1 else {},
    )


async def streams(
    server: Running, rows: Sequence[str], num_streams: int, answer_tokens: int
) -> list[Stream]:
    """Stream `num_streams` requests, `NUM_CALLERS` at a time."""
    models = itertools.islice(itertools.cycle(rows), num_streams)
    # One iterator for all callers: each takes the next request when it is free.
    requests = iter(list(zip(models, prompts(num_streams, num_streams), strict=True)))
    async with opened(server) as client:
        callers = [_caller(client, requests, answer_tokens) for _ in range(NUM_CALLERS)]
        return list(itertools.chain.from_iterable(await asyncio.gather(*callers)))


async def _caller(
    client: AsyncOpenAI, requests: Iterator[tuple[str, list[int]]], answer_tokens: int
) -> list[Stream]:
    return [await _stream(client, model, prompt, answer_tokens) for model, prompt in requests]


async def _stream(client: AsyncOpenAI, model: str, prompt: list[int], answer_tokens: int) -> Stream:
    stream = Stream(time.monotonic())
    pieces = await client.completions.create(
        model=model,
        prompt=prompt,
        max_tokens=answer_tokens,
        temperature=0.0,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    async for _ in pieces:
        stream.came_s.append(time.monotonic())
    return stream


@asynccontextmanager
async def loading(server: Running, names: Sequence[str]) -> AsyncIterator[list[float]]:
    """Inside the block the tasks are unloaded and loaded in turn; gives the loads' seconds."""
    loads_s: list[float] = []
    if not names:
        yield loads_s
        return
    is_over = asyncio.Event()
    async with AsyncClient(server.grpc) as client:
        loop = asyncio.create_task(load_in_turn(client, names, loads_s, is_over))
        try:
            yield loads_s
        finally:
            is_over.set()
            await loop


async def load_in_turn(
    client: AsyncClient, names: Sequence[str], loads_s: list[float], is_over: asyncio.Event
) -> None:
    """Unload and load one task after the other until `is_over`; notes each load's seconds."""
    for name in itertools.cycle(names):
        if is_over.is_set():
            return
        await client.unload_task(name)
        started_s = time.monotonic()
        await client.load_task(name)
        loads_s.append(time.monotonic() - started_s)
