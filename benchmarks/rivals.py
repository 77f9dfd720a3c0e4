"""What taskmix is compared with: the base alone, vLLM's own adapters, and swaps of all weights."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.models import LORA_RANK, LORAS, Models
from benchmarks.rounds import answer, opened
from benchmarks.servers import DEVELOPMENT, Running, swap, vllm
from benchmarks.workloads import BASE, MIXES, SIXTEEN_MIXES, Workload, groups, prompts

ADAPTERS = Workload("adapters", LORAS)
"""The rows of a batch spread over the adapters."""
EAGER = "--enforce-eager"
LORA_FLAGS = ("--enable-lora", "--max-lora-rank", str(LORA_RANK), "--max-loras", str(len(LORAS)))


@contextmanager
def stock(models: Models, folder: Path, cores: str) -> Iterator[Running]:
    """vLLM on the base alone: no LoRA, eager like taskmix."""
    with vllm(models.base, folder, cores, EAGER) as server:
        yield server


@contextmanager
def compiled(models: Models, folder: Path, cores: str) -> Iterator[Running | None]:
    """vLLM on the base alone as it comes, compiled; None without the compiler that it calls."""
    if shutil.which("g++") is None:
        yield None
        return
    with vllm(models.base, folder, cores) as server:
        yield server


@contextmanager
def adapters(models: Models, folder: Path, cores: str) -> Iterator[Running]:
    """vLLM's own multi-LoRA, for `ADAPTERS`."""
    modules = [f"{name}={path}" for name, path in zip(LORAS, models.loras, strict=True)]
    with vllm(models.base, folder, cores, EAGER, *LORA_FLAGS, "--lora-modules", *modules) as server:
        yield server


@contextmanager
def swapped(models: Models, folder: Path, cores: str) -> Iterator[Running]:
    """One vLLM whose weights are exchanged for each mix's, merged beforehand, in turn."""
    with vllm(models.base, folder, cores, EAGER, environment=DEVELOPMENT) as server:
        for checkpoint in models.merged:
            swap(server, checkpoint)  # from now on every file is in memory
        yield server


async def swap_round(server: Running, models: Models, seed: int, answer_tokens: int) -> float:
    """Tokens per second of all mixes' requests, the swaps' time in it."""
    checkpoints, asked = dict(zip(MIXES, models.merged, strict=True)), prompts(seed)
    started_s = time.monotonic()
    async with opened(server) as client:
        for mix, rows in groups(SIXTEEN_MIXES.rows).items():
            await asyncio.to_thread(swap, server, checkpoints[mix])
            group = (answer(client, BASE, asked[row], answer_tokens) for row in rows)
            await asyncio.gather(*group)
    return len(asked) * answer_tokens / (time.monotonic() - started_s)
