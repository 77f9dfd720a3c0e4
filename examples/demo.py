"""The demo: fine-tune three tasks, bank them, serve them, and show what their mixes answer."""

import asyncio
import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import click
from transformers import logging

from examples.finetune import Recipe, finetune
from examples.launch import Served, start_server
from examples.smollm2 import prepare_base
from examples.tasks import TASKS, Task
from taskmix_client import AsyncClient
from taskmix_composer.bank.manifest import VERSION
from taskmix_composer.bank.reader import Bank
from taskmix_composer.build import build_bank
from taskmix_composer.forms import Forms
from taskmix_server.cli.table import print_table
from taskmix_server.settings import default_cache

CHOSEN = ("plurals", "languages", "dates")
ALL = "+".join(f"{name}:0.6" for name in CHOSEN)
SCHEME = "int4"
CONCURRENCY = 32
SERVER_LIFETIME_S = 3600
SERVE_FLAGS = ("--max-num-seqs", str(CONCURRENCY), "--max-model-len", "1024")


@click.command()
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=lambda: default_cache() / "models",
    help="Where models, the bank and the server's log are kept.",
)
def main(cache: Path) -> None:
    """Fine-tune, build a bank, start a server that stays, and show its answers."""
    started_s = time.monotonic()
    logging.disable_progress_bar()  # of loading; training shows its own
    stop_earlier(cache)
    base = prepare_base(cache)
    step(started_s, f"base model ready: {base}")
    tasks = {name: TASKS[name](cache) for name in CHOSEN}
    checkpoints = {}
    for name, task in tasks.items():
        step(started_s, f"fine-tuning {name}: {task.description}")
        checkpoints[name] = cache / name
        finetune(base, task, checkpoints[name], Recipe())
    bank = cache / f"bank-{SCHEME}"
    prepare_bank(base, checkpoints, bank)
    step(started_s, f"bank ready: {bank}")
    served = start_server(
        base,
        bank,
        cache / "server.log",
        *SERVE_FLAGS,
        "--state",
        str(cache / "state"),
        lifetime_s=SERVER_LIFETIME_S,
    )
    (cache / "server.pid").write_text(f"{served.process.pid}\n")
    step(started_s, f"server ready: gRPC {served.grpc}, HTTP {served.http}")
    asyncio.run(show(served, tasks))
    show_bytes(base, checkpoints, bank)
    step(started_s, "done")
    show_next(served)


def prepare_bank(base: Path, checkpoints: Mapping[str, Path], bank: Path) -> None:
    """Build the bank unless one of these very checkpoints is there."""
    stamp = bank.with_suffix(".sources")
    sources = f"bank format {VERSION}\n" + "\n".join(
        (path / "provenance.json").read_text() for path in checkpoints.values()
    )
    if bank.exists() and stamp.exists() and stamp.read_text() == sources:
        return
    if bank.exists():
        bank.rename(bank.with_name(f"{bank.name}-replaced-{time.time_ns()}"))
    build_bank(base, checkpoints, Forms.parse(SCHEME), bank)
    stamp.write_text(sources)


async def show(served: Served, tasks: Mapping[str, Task]) -> None:
    """Ask the server everything the tables below need."""
    async with AsyncClient(served.grpc) as client:
        together = await show_scores(client, tasks)
        await show_batch(client, tasks)
        await show_negation(client, tasks, together)


async def show_scores(client: AsyncClient, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Each task's held-out score under the base, its own mix, and the mix of all (returned)."""
    rows, together = [], {}
    for name, task in tasks.items():
        scores = [await score(client, task, mix) for mix in ("base", name, ALL)]
        rows.append([name, str(len(task.held_out)), *(f"{value:.1%}" for value in scores)])
        together[name] = scores[-1]
    table("Held-out rows answered exactly", ["task", "rows", "base", "own mix", ALL], rows)
    return together


async def show_batch(client: AsyncClient, tasks: Mapping[str, Task]) -> None:
    """One concurrent batch in which every request names another mix."""
    mixes = ["base", *tasks, ALL]
    wanted = [
        (task.held_out[0].prompt, mix, task.max_answer_tokens)
        for task in tasks.values()
        for mix in mixes
    ]
    answers = await asyncio.gather(
        *(
            client.generate(prompt, mix=mix, max_tokens=max_tokens, temperature=0.0, stop=["\n"])
            for prompt, mix, max_tokens in wanted
        )
    )
    rows = [
        [shortened(prompt), mix, answer.text.strip(), answer.mix_digest[:8]]
        for (prompt, mix, _), answer in zip(wanted, answers, strict=True)
    ]
    table("One concurrent batch", ["prompt ends with", "mix", "answer", "digest"], rows)


async def show_negation(
    client: AsyncClient, tasks: Mapping[str, Task], together: Mapping[str, float]
) -> None:
    """What subtracting one task, instead of adding it, does to each task's score."""
    negated = CHOSEN[0]
    minus = "+".join(f"{name}:{-0.6 if name == negated else 0.6}" for name in CHOSEN)
    rows = []
    for name, task in tasks.items():
        rows.append([name, f"{together[name]:.1%}", f"{await score(client, task, minus):.1%}"])
    table(f"A negative coefficient on {negated}", ["task", ALL, minus], rows)


async def score(client: AsyncClient, task: Task, mix: str) -> float:
    """The held-out score of the server's greedy answers under a mix."""
    answers: list[str] = []
    prompts = task.prompts()
    for start in range(0, len(prompts), CONCURRENCY):
        replies = await asyncio.gather(
            *(
                client.generate(
                    prompt,
                    mix=mix,
                    max_tokens=task.max_answer_tokens,
                    temperature=0.0,
                    stop=["\n"],
                )
                for prompt in prompts[start : start + CONCURRENCY]
            )
        )
        answers += [reply.text for reply in replies]
    return task.score(answers)


def show_bytes(base: Path, checkpoints: Mapping[str, Path], bank: Path) -> None:
    """What the bank weighs against the checkpoints it stands for."""
    entries = Bank.open(bank).entries
    rows = []
    for name, checkpoint in checkpoints.items():
        full = (checkpoint / "model.safetensors").stat().st_size
        coded = entries[name].num_bytes
        rows.append([name, megabytes(full), megabytes(coded), f"{coded / full:.1%}"])
    table(f"Bytes on disk ({SCHEME})", ["task", "checkpoint", "bank entry", "share"], rows)


def show_next(served: Served) -> None:
    """Lines to paste."""
    click.echo(
        f"""
The server keeps running for an hour (process {served.process.pid}). Try:

  .venv/bin/taskmix generate --server {served.grpc} --mix "plurals:0.7+dates:0.3" \\
    --max-tokens 8 --temperature 0 "Singular: fox
Plural:"
  .venv/bin/taskmix tasks list --server {served.grpc}
  curl http://{served.http}/v1/completions -H 'content-type: application/json' \\
    -d '{{"model": "plurals", "prompt": "Singular: fox\\nPlural:", "max_tokens": 8}}'
  kill {served.process.pid}    # stops it
"""
    )


def stop_earlier(cache: Path) -> None:
    """End the server that an earlier demo left running."""
    record = cache / "server.pid"
    if not record.exists():
        return
    identity = int(record.read_text())
    record.unlink()
    command = Path(f"/proc/{identity}/cmdline")
    with suppress(OSError):
        if b"taskmix" in command.read_bytes():
            os.kill(identity, signal.SIGTERM)


def step(started_s: float, message: str) -> None:
    """Say what is done, and when."""
    click.echo(f"[{time.monotonic() - started_s:5.0f} s] {message}")


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a titled table."""
    click.echo(f"\n{title}\n")
    print_table(head, rows)
    click.echo()


def shortened(prompt: str, length: int = 40) -> str:
    """The end of a prompt on one line."""
    line = " ".join(prompt.split())
    return line if len(line) <= length else f"...{line[-length + 3 :]}"


def megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    main()
