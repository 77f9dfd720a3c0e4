"""Callers that keep a server busy. Run as a program, it sends at a rate, whatever the answers.

A process of its own: what it does must not delay those whose waits are measured.
"""

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

from taskmix_client import Answer, AsyncClient, ResourceExhaustedError


@dataclass
class Waits:
    """Seconds that callers waited for whole answers, those that answers report to their first
    tokens, and refusals."""

    whole_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    num_refused: int = 0


async def ask(client: AsyncClient, prompt: str, num_tokens: int, waits: Waits) -> None:
    """One request; a caller that is refused waits as it is told."""
    started_s = time.monotonic()
    try:
        answer: Answer = await client.generate(
            prompt, max_tokens=num_tokens, ignore_eos=True, temperature=0.0
        )
    except ResourceExhaustedError as error:
        waits.num_refused += 1
        await asyncio.sleep(error.retry_after_s or 1.0)
        return
    waits.whole_s.append(time.monotonic() - started_s)
    waits.first_token_s.append(answer.timings.ttft_s)


async def keep_asking(
    client: AsyncClient, name: str, num_tokens: int, seconds: float, waits: Waits
) -> None:
    """One request after another, for so long."""
    end_s, number = time.monotonic() + seconds, 0
    while time.monotonic() < end_s:
        await ask(client, f"{name} {number}", num_tokens, waits)
        number += 1


@dataclass(frozen=True)
class Flood:
    """What a flood came to, per second: requests sent, and answers in its second half."""

    sent_per_s: float
    answers_per_s: float


@contextmanager
def flooding(
    target: str, key: str, rate: float, num_tokens: int, seconds: float
) -> Iterator[list[Flood]]:
    """Send requests at a rate for so many seconds from now; the list is filled at the end."""
    arguments = (target, key, str(rate), str(num_tokens), str(seconds))
    command = [sys.executable, "-m", "tests.support.load", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()  # it has had its first answer
        seen: list[Flood] = []
        try:
            yield seen
            seen.append(Flood(**json.loads(process.stdout.readline())))
        finally:
            process.kill()


async def _flood(target: str, key: str, rate: float, num_tokens: int, seconds: float) -> Flood:
    ends: list[float] = []

    async def one(client: AsyncClient, number: int) -> None:
        try:
            await client.generate(f"flood {number}", max_tokens=num_tokens, ignore_eos=True)
        except ResourceExhaustedError:
            return
        ends.append(time.monotonic())

    async with AsyncClient(target, key, timeout_s=60, max_attempts=1) as client:
        await one(client, 0)
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        started_s, tasks = time.monotonic(), []
        while len(tasks) < rate * seconds:
            tasks.append(asyncio.create_task(one(client, len(tasks) + 1)))
            await asyncio.sleep(max(0.0, started_s + len(tasks) / rate - time.monotonic()))
        ended_s = time.monotonic()
        half_s = (started_s + ended_s) / 2
        num_answers = sum(half_s <= end_s <= ended_s for end_s in ends)
        await asyncio.gather(*tasks)
    return Flood(len(tasks) / (ended_s - started_s), num_answers / (ended_s - half_s))


if __name__ == "__main__":
    _target, _key, *_numbers = sys.argv[1:]
    _rate, _num_tokens, _seconds = map(float, _numbers)
    _seen = asyncio.run(_flood(_target, _key, _rate, int(_num_tokens), _seconds))
    sys.stdout.write(json.dumps(asdict(_seen)) + "\n")
