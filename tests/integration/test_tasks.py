"""Tasks come, go and change under a running server; requests in flight keep what they have."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

import taskmix_client as tm
from taskmix_client import Client, Task
from taskmix_composer.bank.reader import Bank
from tests.support.models import Models
from tests.support.served import Served, metrics, taskmix
from tests.support.waiting import eventually

PROMPT = "Once upon a time"
OPTIONS: dict[str, Any] = {"max_tokens": 48, "temperature": 0.0, "ignore_eos": True}


@contextmanager
def in_flight(served: Served, client: Client, mix: str) -> Iterator[Future[tuple[int, ...]]]:
    """A stream that has begun and cannot go on inside the block; its tokens come after it."""
    with ThreadPoolExecutor() as threads, served.frozen():
        stream = client.stream(PROMPT, mix=mix, **OPTIONS)
        future = threads.submit(lambda: tuple(t for chunk in stream for t in chunk.token_ids))
        eventually(lambda: metrics(served.http)["taskmix_task_references"] > 0.0)
        yield future


def task(client: Client, name: str) -> Task:
    return next(task for task in client.tasks() if task.name == name)


def put(models: Models, name: str, finetune: str) -> None:
    """Make `name` mean a fine-tune in the bank directory, as an operator would."""
    if name in Bank.open(models.bank).entries:
        taskmix("bank", "remove", models.bank, name)
    source = f"{name}={models.finetunes[finetune]}"
    taskmix("bank", "add", models.bank, "--base", models.base, "--task", source)


@pytest.fixture
def visiting(client: Client, models: Models) -> Iterator[str]:
    """A task that was added to the bank of the running server; gone again after the test."""
    name = "visiting-task"
    put(models, name, "spare")
    yield name
    client.unload_task(name)
    taskmix("bank", "remove", models.bank, name)


def test_a_task_added_under_the_server(client: Client, http: httpx.Client, visiting: str) -> None:
    with pytest.raises(tm.NotFoundError, match=visiting):
        client.generate(PROMPT, mix=visiting)
    before = client.generate(PROMPT, mix="a", **OPTIONS)
    loaded = client.load_task(visiting)
    assert (loaded.state, loaded.num_references) == ("resident", 0)
    answer = client.generate(PROMPT, mix=visiting, **OPTIONS)
    assert answer.token_ids != client.generate(PROMPT, **OPTIONS).token_ids
    assert answer.bank_revision != before.bank_revision
    assert client.generate(PROMPT, mix="a", **OPTIONS).token_ids == before.token_ids
    assert visiting in [model["id"] for model in http.get("/v1/models").json()["data"]]


def test_unloading_waits_for_the_stream_that_uses_it(
    served: Served, client: Client, http: httpx.Client, visiting: str
) -> None:
    client.load_task(visiting)
    mix = f"{visiting}+a"
    whole = client.generate(PROMPT, mix=mix, **OPTIONS)
    with in_flight(served, client, mix) as stream:
        unloaded = client.unload_task(visiting)
        assert (unloaded.state, unloaded.num_references) == ("unloading", 1)
        with pytest.raises(tm.NotFoundError, match=visiting):
            client.generate(PROMPT, mix=visiting)
        refusal = http.post("/v1/completions", json={"model": visiting, "prompt": PROMPT})
        assert refusal.status_code == 404
    assert stream.result() == whole.token_ids
    eventually(lambda: task(client, visiting).state == "on disk")

    client.load_task(visiting)
    assert client.generate(PROMPT, mix=mix, **OPTIONS).token_ids == whole.token_ids


def test_replaced_content_is_for_new_requests_only(
    served: Served, client: Client, models: Models, visiting: str
) -> None:
    client.load_task(visiting)
    old = client.generate(PROMPT, mix=visiting, **OPTIONS)
    put(models, visiting, "other")
    assert client.generate(PROMPT, mix=visiting, **OPTIONS).mix_digest == old.mix_digest
    with ThreadPoolExecutor() as threads:
        with in_flight(served, client, visiting) as stream:
            loading = threads.submit(client.load_task, visiting)
            eventually(lambda: task(client, visiting).state == "loading")
        assert loading.result().state == "resident"
    new = client.generate(PROMPT, mix=visiting, **OPTIONS)
    assert stream.result() == old.token_ids
    assert new.mix_digest != old.mix_digest
    assert new.token_ids != old.token_ids
    assert new.usage.cached_tokens == 0


def test_a_named_mix_outlives_its_task(client: Client, visiting: str) -> None:
    client.load_task(visiting)
    named = client.register_mix("with-visitor", f"{visiting}:0.5")
    try:
        assert named.mix_digest
        client.unload_task(visiting)
        assert [mix.mix_digest for mix in client.mixes()] == [""]
        with pytest.raises(tm.NotFoundError, match=visiting):
            client.generate(PROMPT, mix_name="with-visitor")
        client.load_task(visiting)
        answer = client.generate(PROMPT, mix_name="with-visitor", **OPTIONS)
        assert answer.mix_digest == named.mix_digest
    finally:
        client.delete_mix("with-visitor")


def test_loading_and_unloading_twice(client: Client, visiting: str) -> None:
    assert client.load_task(visiting) == client.load_task(visiting)
    assert client.unload_task(visiting).state == "on disk"
    assert client.unload_task(visiting).state == "on disk"
    assert [task.state for task in client.tasks()] == ["resident"] * 3 + ["on disk"]
