"""What taskmix is compared with: the base alone, vLLM's own adapters, and swaps of all weights."""

import asyncio
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.models import LORA_RANK, LORAS, Models
from benchmarks.record import spread
from benchmarks.rounds import Effort, Rate, answer, opened
from benchmarks.servers import DEVELOPMENT, Running, swap, vllm
from benchmarks.workloads import BASE, MIXES, NUM_ROWS, SIXTEEN_MIXES, groups, prompts

ADAPTER_ROWS = tuple(LORAS[row % len(LORAS)] for row in range(NUM_ROWS))
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
    """vLLM's own multi-LoRA, for `ADAPTER_ROWS`."""
    modules = [f"{name}={path}" for name, path in zip(LORAS, models.loras, strict=True)]
    with vllm(models.base, folder, cores, EAGER, *LORA_FLAGS, "--lora-modules", *modules) as server:
        yield server


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
