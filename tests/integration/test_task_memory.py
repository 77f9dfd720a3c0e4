"""More tasks than fit into the engine: each answers as where all of them fit."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import taskmix_client as tm
from taskmix_client import Client
from taskmix_composer.bank.reader import Bank
from tests.support.models import Models
from tests.support.served import Served, metrics, serving

PROMPT = "Once upon a time"
OPTIONS: dict[str, Any] = {"max_tokens": 24, "temperature": 0.0, "ignore_eos": True}
MIXES = ("a", "b", "c", "a:0.5+c", "b:0.5+c", "base")


@pytest.fixture(scope="module")
def budget(models: Models) -> int:
    """Room for c and one of a and b."""
    sizes = {name: entry.num_bytes for name, entry in Bank.open(models.bank).entries.items()}
    assert sizes["c"] < sizes["a"] == sizes["b"]
    return sizes["a"] + sizes["c"] + sizes["c"] // 10


@pytest.fixture(scope="module")
def small(
    models: Models, budget: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    state = tmp_path_factory.mktemp("small")
    with serving(models.base, models.bank, state, "--task-memory", str(budget)) as server:
        yield server


@pytest.fixture
def near(small: Served) -> Iterator[Client]:
    with Client(small.grpc, timeout_s=60) as opened:
        yield opened


def test_what_does_not_fit_is_served_all_the_same(near: Client, small: Served) -> None:
    assert {task.name: task.state for task in near.tasks()} == {
        "a": "resident",
        "b": "offloaded",
        "c": "resident",
    }
    listed = httpx.get(f"{small.http}/v1/models", timeout=60).json()["data"]
    assert {"a", "b", "c"} <= {model["id"] for model in listed}


def test_answers_are_those_of_a_server_with_room(
    near: Client, client: Client, small: Served, budget: int
) -> None:
    wanted = {mix: client.generate(PROMPT, mix=mix, **OPTIONS).token_ids for mix in MIXES}
    assert len(set(wanted.values())) == len(MIXES)

    def answer(mix: str) -> tuple[str, tuple[int, ...]]:
        return mix, near.generate(PROMPT, mix=mix, **OPTIONS).token_ids

    with ThreadPoolExecutor(8) as threads:
        answered = list(threads.map(answer, MIXES * 4))
    assert all(token_ids == wanted[mix] for mix, token_ids in answered)
    seen = metrics(small.http)
    assert seen["taskmix_task_evictions_total"] >= 1.0
    assert 0.0 < seen["taskmix_resident_bytes"] <= budget
    assert seen["taskmix_task_references"] == 0.0


def test_tasks_that_never_fit_together_are_refused(near: Client, small: Served) -> None:
    for name in ("a", "b"):
        near.generate(PROMPT, mix=name, **OPTIONS)  # from now on it is known what they take
    with pytest.raises(tm.FailedPreconditionError, match=r"--task-memory\), against .* of a, b"):
        near.generate(PROMPT, mix="a+b")
    body = {"model": "a+b", "prompt": PROMPT}
    refusal = httpx.post(f"{small.http}/v1/completions", json=body, timeout=60)
    assert (refusal.status_code, "--task-memory" in refusal.text) == (409, True)
    assert near.generate(PROMPT, mix="b+c", **OPTIONS).token_ids
