"""Rounds of concurrent requests, and the tokens per second that they give."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Self

from openai import AsyncOpenAI

from benchmarks.record import spread
from benchmarks.servers import Running
from benchmarks.workloads import Workload, prompts

SETTLE_S = 2.0
"""Before a round: after its last message, stock vLLM keeps a core busy for a second."""


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is measured."""

    num_rounds: int
    num_growth_rounds: int
    answer_tokens: int
    num_streams: int
    num_mixes: tuple[int, ...]


FULL = Effort(
    num_rounds=6,
    num_growth_rounds=2,
    answer_tokens=64,
    num_streams=128,
    num_mixes=(16, 100, 1_000, 10_000),
)
QUICK = Effort(
    num_rounds=2,
    num_growth_rounds=2,
    answer_tokens=4,
    num_streams=16,
    num_mixes=(16, 100),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Generated tokens per second of one server under one workload.

    `cores` is a name in `servers.CORES`; `start_s` is how long the server took to start; `turns`
    has the rate of each round, of contenders that took turns.
    """

    server: str
    cores: str
    workload: str
    tokens_per_s: Mapping[str, float]
    start_s: float
    turns: Sequence[float] = ()


Round = Callable[[int, int], Awaitable[float]]
"""Told a seed and the tokens of an answer, runs one round; the tokens per second of it."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A workload on one of several servers that are up at the same time."""

    name: str
    server: Running
    workload: str
    round: Round

    @classmethod
    def at_once(cls, name: str, server: Running, workload: Workload) -> Self:
        """All rows of the workload are asked together."""
        return cls(name, server, workload.name, partial(_once, server, workload.rows))


class ShortAnswerError(Exception):
    """A server answered with fewer tokens than were asked for."""


async def in_turns(contenders: Sequence[Contender], cores: str, effort: Effort) -> list[Rate]:
    """Rates over rounds of one contender after the other: a slow minute slows each of them.

    The first round of each is not counted. Every round has prompts of its own.
    """
    found: list[list[float]] = [[] for _ in contenders]
    for seed in range(effort.num_rounds + 1):
        for contender, rounds in zip(contenders, found, strict=True):
            await asyncio.sleep(SETTLE_S)
            rounds.append(await contender.round(seed, effort.answer_tokens))
    return [
        Rate(
            server=contender.name,
            cores=cores,
            workload=contender.workload,
            tokens_per_s=spread(rounds[1:]),
            start_s=contender.server.start_s,
            turns=rounds[1:],
        )
        for contender, rounds in zip(contenders, found, strict=True)
    ]


async def _once(server: Running, rows: Sequence[str], seed: int, answer_tokens: int) -> float:
    async with opened(server) as client:
        return await _round(client, rows, seed, answer_tokens)


async def rates(
    server: Running, rows: Sequence[str], num_rounds: int, answer_tokens: int
) -> dict[str, float]:
    """The spread of tokens per second over rounds, after one round that is not counted.

    Every round has prompts of its own, so that none is cached.
    """
    async with opened(server) as client:
        found = [await _round(client, rows, seed, answer_tokens) for seed in range(num_rounds + 1)]
    return spread(found[1:])


def opened(server: Running) -> AsyncOpenAI:
    """A client of the server's HTTP edge."""
    return AsyncOpenAI(base_url=f"http://{server.http}/v1", api_key="none", max_retries=0)


async def _round(client: AsyncOpenAI, rows: Sequence[str], seed: int, answer_tokens: int) -> float:
    asked = zip(rows, prompts(seed, len(rows)), strict=True)
    started_s = time.monotonic()
    await asyncio.gather(*(answer(client, mix, prompt, answer_tokens) for mix, prompt in asked))
    return len(rows) * answer_tokens / (time.monotonic() - started_s)


async def answer(client: AsyncOpenAI, model: str, prompt: Sequence[int], answer_tokens: int) -> str:
    """The text of exactly `answer_tokens` greedy tokens."""
    answered = await client.completions.create(
        model=model,
        prompt=list(prompt),
        max_tokens=answer_tokens,
        temperature=0.0,
        extra_body={"ignore_eos": True},
    )
    counted = answered.usage.completion_tokens if answered.usage else 0
    if counted != answer_tokens:
        raise ShortAnswerError(
            f"{model} answered with {counted} tokens of {answer_tokens}: rates would be wrong"
        )
    return answered.choices[0].text
