"""What concurrent requests name, over how many tasks, and what they ask."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from taskmix_composer.mix import Mix

NUM_ROWS = 32
"""Concurrent requests, each a row of the batch."""
BASE = "base"
TASKS = tuple(f"task{index}" for index in range(8))
PROMPT_TOKENS = 32
VOCABULARY = 49152


@dataclass(frozen=True, slots=True)
class Workload:
    """Mixes that the rows of a batch name in turn."""

    name: str
    mixes: tuple[str, ...]

    @property
    def rows(self) -> tuple[str, ...]:
        """The mix of each row."""
        return tuple(self.mixes[row % len(self.mixes)] for row in range(NUM_ROWS))

    @property
    def num_pairs(self) -> int:
        """Pairs of a row and a task that it adds: what a delta path has to compute."""
        return sum(len(Mix.parse(mix).tasks) for mix in self.rows)

    @property
    def num_tasks(self) -> int:
        """Distinct tasks: what a delta path has to read."""
        return len({task for mix in self.mixes for task in Mix.parse(mix).tasks})


# Sixteen pairs that use each of the eight tasks four times.
MIXES = tuple(
    f"{TASKS[index % 8]}:0.6+{TASKS[(index + 1 + 2 * (index // 8)) % 8]}:0.4" for index in range(16)
)
WHOLE = tuple(f"{task}:1.0" for task in TASKS)
HALVES = tuple(f"{task}:0.5" for task in TASKS)

IDLE = Workload("idle", (BASE,))
SIXTEEN_MIXES = Workload("sixteen_mixes", MIXES)
HALF_SINGLE = Workload("half_single", WHOLE + MIXES[:8])
WORKLOADS = (
    IDLE,
    Workload("one_mix", MIXES[:1]),
    SIXTEEN_MIXES,
    HALF_SINGLE,
    Workload("all_single", WHOLE + HALVES),
)
"""Two rows a mix where there are sixteen."""


def over_tasks(num_tasks: int) -> Workload:
    """A mix of its own for every row, of one task each, over `num_tasks` tasks.

    One mix for all rows could be merged into the weights: then the tasks would not be counted.
    """
    mixes = (f"task{row % num_tasks}:{(row + 1) / NUM_ROWS}" for row in range(NUM_ROWS))
    return Workload(f"over_{num_tasks}_tasks", tuple(mixes))


def prompts(seed: int, num_prompts: int = NUM_ROWS) -> list[list[int]]:
    """Random tokens, [num_prompts][PROMPT_TOKENS]: no prompt shares a start with another."""
    draw = random.Random(seed)  # noqa: S311 - a workload, not a secret
    return [draw.choices(range(VOCABULARY), k=PROMPT_TOKENS) for _ in range(num_prompts)]


def groups(rows: Sequence[str]) -> dict[str, list[int]]:
    """The rows of each mix, for a server that holds the weights of one mix at a time."""
    found: dict[str, list[int]] = {}
    for row, mix in enumerate(rows):
        found.setdefault(mix, []).append(row)
    return found
