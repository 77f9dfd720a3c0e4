"""What taskmix is compared with: the base alone, vLLM's own adapters, and swaps of all weights."""

import asyncio
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.latency import Latency, latency
from benchmarks.models import LORA_RANK, LORAS, Models
from benchmarks.record import spread
from benchmarks.rounds import Effort, Rate, answer, opened, rates
from benchmarks.servers import DEVELOPMENT, Running, swap, vllm
from benchmarks.workloads import BASE, IDLE, MIXES, NUM_ROWS, SIXTEEN_MIXES, groups, prompts

EAGER = "--enforce-eager"
LORA_FLAGS = ("--enable-lora", "--max-lora-rank", str(LORA_RANK), "--max-loras", str(len(LORAS)))


def stock(
    models: Models, folder: Path, cores: str, effort: Effort, *, has_streams: bool
) -> Iterator[Rate | Latency]:
    """vLLM on the base alone: no LoRA, eager like taskmix. With `has_streams` its latency too."""
    with vllm(models.base, folder, cores, EAGER) as server:
        yield rate(server, "stock", cores, IDLE.name, IDLE.rows, effort)
        if has_streams:
            yield asyncio.run(latency(server, "stock", cores, IDLE.rows, effort))


def compiled(models: Models, folder: Path, cores: str, effort: Effort) -> Iterator[Rate]:
    """vLLM on the base alone as it comes, compiled; nothing without the compiler that it calls."""
    if shutil.which("g++") is None:
        return
    with vllm(models.base, folder, cores) as server:
        yield rate(server, "compiled", cores, IDLE.name, IDLE.rows, effort)


def adapters(models: Models, folder: Path, cores: str, effort: Effort) -> Iterator[Rate]:
    """vLLM's own multi-LoRA, the rows spread over its adapters."""
    modules = [f"{name}={path}" for name, path in zip(LORAS, models.loras, strict=True)]
    flags = (EAGER, *LORA_FLAGS, "--lora-modules", *modules)
    rows = tuple(LORAS[row % len(LORAS)] for row in range(NUM_ROWS))
    with vllm(models.base, folder, cores, *flags) as server:
        fewer = replace(effort, num_rounds=effort.num_adapter_rounds)
        yield rate(server, "adapters", cores, "adapters", rows, fewer)


def swaps(models: Models, folder: Path, cores: str, effort: Effort) -> Iterator[Rate]:
    """One vLLM whose weights are exchanged for each mix's, merged beforehand, in turn."""
    checkpoints = dict(zip(MIXES, models.merged, strict=True))
    with vllm(models.base, folder, cores, EAGER, environment=DEVELOPMENT) as server:
        for checkpoint in checkpoints.values():
            swap(server, checkpoint)  # not counted: now every file is in memory
        found, swaps_s = asyncio.run(_swap_rounds(server, checkpoints, effort))
        yield Rate(
            server="swaps",
            cores=cores,
            workload=SIXTEEN_MIXES.name,
            tokens_per_s=spread(found),
            start_s=server.start_s,
            swap_s=spread(swaps_s),
        )


def rate(
    server: Running, name: str, cores: str, workload: str, rows: tuple[str, ...], effort: Effort
) -> Rate:
    """Measure the rounds of one workload."""
    found = asyncio.run(rates(server, rows, effort.num_rounds, effort.answer_tokens))
    return Rate(
        server=name, cores=cores, workload=workload, tokens_per_s=found, start_s=server.start_s
    )


async def _swap_rounds(
    server: Running, checkpoints: Mapping[str, Path], effort: Effort
) -> tuple[list[float], list[float]]:
    """Tokens per second of each round, the swaps' time in it, and the seconds of each swap."""
    found: list[float] = []
    swaps_s: list[float] = []
    async with opened(server) as client:
        for seed in range(1, effort.num_swap_rounds + 1):
            asked = prompts(seed)
            started_s = time.monotonic()
            for mix, rows in groups(SIXTEEN_MIXES.rows).items():
                swaps_s.append(await asyncio.to_thread(swap, server, checkpoints[mix]))
                group = (answer(client, BASE, asked[row], effort.answer_tokens) for row in rows)
                await asyncio.gather(*group)
            elapsed_s = time.monotonic() - started_s
            found.append(len(asked) * effort.answer_tokens / elapsed_s)
    return found, swaps_s
