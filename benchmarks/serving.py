"""Serving: 32 concurrent requests over 8 tasks and 16 mixes against stock vLLM on the base."""

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from openai import AsyncOpenAI

from benchmarks.models import TASKS, prepare
from benchmarks.record import append, spread
from benchmarks.servers import NUM_SEQS, Running, stock, taskmix
from taskmix_client import Client
from taskmix_server.settings import default_cache

SCHEME = "int4"
NUM_ROUNDS = 5
PROMPT_TOKENS = 32
ANSWER_TOKENS = 64
VOCABULARY = 49152

# Sixteen pairs that use each of the eight tasks four times.
MIXES = [
    f"{TASKS[index % 8]}:0.6+{TASKS[(index + 1 + 2 * (index // 8)) % 8]}:0.4" for index in range(16)
]

Workload = Callable[[str], Sequence[str]]
"""From the base's name to the model that each of the concurrent requests names."""

WORKLOADS: dict[str, Workload] = {
    "base": lambda base: [base] * NUM_SEQS,
    "one_mix": lambda base: [MIXES[0]] * NUM_SEQS,
    "16_mixes": lambda base: [MIXES[index % len(MIXES)] for index in range(NUM_SEQS)],
}


@click.command()
@click.option(
    "--cache", type=click.Path(path_type=Path), default=lambda: default_cache() / "models"
)
def main(cache: Path) -> None:
    """Measure, print, and append to results/serving.jsonl."""
    base, bank = prepare(cache, SCHEME)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(base, bank, Path(folder))
    for name, value in measured.items():
        click.echo(f"{name:32} {value}")
    click.echo(f"appended to {append('serving', measured)}")


def measure(base: Path, bank: Path, folder: Path) -> dict[str, object]:
    """Run stock vLLM, then taskmix, with the same requests."""
    with stock(base, folder) as server:
        stock_rates = asyncio.run(rates(server, base.name, WORKLOADS["base"]))
        stock_start_s = server.start_s
    measured: dict[str, object] = {
        "scheme": SCHEME,
        "num_requests": NUM_SEQS,
        "num_tasks": len(TASKS),
        "num_mixes": len(MIXES),
        "prompt_tokens": PROMPT_TOKENS,
        "answer_tokens": ANSWER_TOKENS,
        "stock_tokens_per_s": spread(stock_rates),
        "stock_start_s": round(stock_start_s, 1),
    }
    with taskmix(base, bank, folder) as server:
        measured["start_s"] = round(server.start_s, 1)
        for name, workload in WORKLOADS.items():
            found = spread(asyncio.run(rates(server, base.name, workload)))
            measured[f"{name}_tokens_per_s"] = found
            measured[f"{name}_ratio"] = round(found["p50"] / spread(stock_rates)["p50"], 3)
        measured["load_task_s"] = spread(load_seconds(server))
    return measured


async def rates(server: Running, base_name: str, workload: Workload) -> list[float]:
    """Generated tokens per second in each round, after one round that is not counted."""
    models = workload(base_name)
    async with AsyncOpenAI(base_url=f"http://{server.http}/v1", api_key="none") as client:
        found = [await one_round(client, models, seed) for seed in range(NUM_ROUNDS + 1)]
    return found[1:]


async def one_round(client: AsyncOpenAI, models: Sequence[str], seed: int) -> float:
    """Tokens per second of one batch; every round has prompts of its own, so none is cached."""
    draw = random.Random(seed)  # noqa: S311 - a workload, not a secret
    prompts = [draw.choices(range(VOCABULARY), k=PROMPT_TOKENS) for _ in models]
    started_s = time.monotonic()
    answers = await asyncio.gather(
        *(
            client.completions.create(
                model=model,
                prompt=prompt,
                max_tokens=ANSWER_TOKENS,
                temperature=0.0,
                extra_body={"ignore_eos": True},
            )
            for model, prompt in zip(models, prompts, strict=True)
        )
    )
    elapsed_s = time.monotonic() - started_s
    num_tokens = sum(answer.usage.completion_tokens for answer in answers if answer.usage)
    return num_tokens / elapsed_s


def load_seconds(server: Running) -> list[float]:
    """Seconds from asking for a task to its being servable, for each task."""
    found = []
    with Client(server.grpc) as client:
        for name in TASKS:
            client.unload_task(name)
            started_s = time.monotonic()
            client.load_task(name)
            found.append(time.monotonic() - started_s)
    return found


if __name__ == "__main__":
    main()
