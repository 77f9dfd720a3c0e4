"""A simulated population for a running experiment: it asks through both edges and reports what it
thought of the answers."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import click
import openai

from examples.demo import CHOSEN
from examples.tasks import TASKS, Task
from examples.tasks.task import Example, is_right
from taskmix_client import AsyncClient, Outcome
from taskmix_server.cli.table import print_table
from taskmix_server.settings import default_cache

METRIC = "right"
BATCH = 500


@dataclass(frozen=True, slots=True)
class Visit:
    """A question of a subject; even numbers ask over gRPC, odd ones over HTTP."""

    number: int
    subject: str
    example: Example
    max_tokens: int


@dataclass(frozen=True, slots=True)
class Seen:
    """A visit's answer: the arm that gave it, as `NAME@VERSION/ARM`, and whether it was right."""

    visit: Visit
    arm: str
    is_right: bool

    @property
    def outcome(self) -> Outcome:
        """What the subject reports."""
        return Outcome(metric=METRIC, value=float(self.is_right), subject=self.visit.subject)


class Asking:
    """Asks an experiment over gRPC with our client, over HTTP with OpenAI's SDK."""

    def __init__(self, name: str, grpc: AsyncClient, http: openai.AsyncOpenAI) -> None:
        self._name = name
        self._grpc = grpc
        self._http = http

    async def seen(self, visit: Visit) -> Seen:
        text, arm = await (self._over_http if visit.number % 2 else self._over_grpc)(visit)
        return Seen(visit, arm, is_right(text, visit.example))

    async def _over_grpc(self, visit: Visit) -> tuple[str, str]:
        """The answer's text, and its arm."""
        answer = await self._grpc.generate(
            visit.example.prompt,
            experiment=self._name,
            subject=visit.subject,
            max_tokens=visit.max_tokens,
            temperature=0.0,
            stop=["\n"],
        )
        return answer.text, answer.arm

    async def _over_http(self, visit: Visit) -> tuple[str, str]:
        response = await self._http.completions.with_raw_response.create(
            model=f"experiment:{self._name}",
            prompt=visit.example.prompt,
            user=visit.subject,
            max_tokens=visit.max_tokens,
            temperature=0.0,
            stop=["\n"],
        )
        return response.parse().choices[0].text, response.headers["x-taskmix-arm"]


@click.command()
@click.argument("name")
@click.option("--server", default="127.0.0.1:50051", help="Where gRPC is served.")
@click.option("--url", default="http://127.0.0.1:8000", help="Where HTTP is served.")
@click.option("--subjects", "num_subjects", default=400, help="How many take part.")
@click.option("--visits", "num_visits", default=4, help="Questions of each.")
@click.option("--at-once", default=16, help="Requests that are open at a time.")
@click.option("--seed", default=0, help="Draws the questions.")
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    default=lambda: default_cache() / "models",
    help="Keeps the tasks' data.",
)
def main(name: str, cache: Path, seed: int, at_once: int, **wanted: int | str) -> None:
    """Let a population meet experiment NAME on the demo's tasks, and record what it saw."""
    tasks = [TASKS[task](cache) for task in CHOSEN]
    visits = list(drawn(tasks, int(wanted["num_subjects"]), int(wanted["num_visits"]), seed))
    edges = str(wanted["server"]), str(wanted["url"])
    seen = asyncio.run(met(name, edges, visits, at_once))
    show(seen)


def drawn(tasks: Sequence[Task], num_subjects: int, num_visits: int, seed: int) -> Iterator[Visit]:
    """Every visit, round by round: a subject has a favourite task, and asks held-out questions."""
    draw = random.Random(seed)  # noqa: S311 - a sample, not a secret
    favourites = [draw.choice(tasks) for _ in range(num_subjects)]
    for number in range(num_subjects * num_visits):
        place = number % num_subjects
        task = favourites[place] if draw.random() < 0.5 else draw.choice(tasks)
        example = draw.choice(task.held_out)
        yield Visit(number, f"user-{place}", example, task.max_answer_tokens)


async def met(
    name: str, edges: tuple[str, str], visits: Sequence[Visit], at_once: int
) -> list[Seen]:
    """Ask everything, then record the outcomes of those who were part of the experiment."""
    server, url = edges
    open_now = asyncio.Semaphore(at_once)
    async with AsyncExitStack() as opened:
        grpc = await opened.enter_async_context(AsyncClient(server, timeout_s=120))
        http = openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="unused")
        asking = Asking(name, grpc, await opened.enter_async_context(http))

        async def ask(visit: Visit) -> Seen:
            async with open_now:
                return await asking.seen(visit)

        seen = await asyncio.gather(*map(ask, visits))
        outcomes = [each.outcome for each in seen if not each.arm.endswith("/-")]
        for start in range(0, len(outcomes), BATCH):
            await grpc.record_outcomes(name, outcomes[start : start + BATCH])
    return seen


def show(seen: Sequence[Seen]) -> None:
    """Print what each arm answered."""
    asked = Counter(each.arm for each in seen)
    right = Counter(each.arm for each in seen if each.is_right)
    rows = [
        (arm, str(number), f"{right[arm] / number:.1%}") for arm, number in sorted(asked.items())
    ]
    print_table(("arm", "answers", "right"), rows)


if __name__ == "__main__":
    main()
