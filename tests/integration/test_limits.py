"""Every limit of a tenant, at both edges of one real server."""

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

import taskmix_client as tm
from taskmix_client import Client, Tenant, TenantLimits
from tests.support.models import Models
from tests.support.served import Served, metrics, serving, taskmix
from tests.support.waiting import eventually

PROMPT = "twelve chars"  # a token per byte
TURNS = [{"role": "user", "content": PROMPT}]
SEATS = 4
QUEUE = 8

_numbers = itertools.count()


@dataclass(frozen=True)
class User:
    """A tenant of its own on a served process, and the admin who changes its limits."""

    served: Served
    ops: Client
    name: str
    key: str

    def client(self, **options: Any) -> Client:
        return Client(self.served.grpc, self.key, timeout_s=60, **options)

    def http(self) -> httpx.Client:
        headers = {"authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.served.http, headers=headers, timeout=60)

    def limit(self, **limits: Any) -> None:
        """Give the tenant these limits and no others."""
        known = {tenant.name: tenant for tenant in self.ops.tenants()}
        self.ops.update_tenant(replace(known[self.name], limits=TenantLimits(**limits)))

    @property
    def num_waiting(self) -> float:
        name = f'taskmix_tenant_waiting{{tenant="{self.name}"}}'
        return metrics(self.served.http).get(name, 0.0)

    def num_refused(self, edge: str, reason: str) -> float:
        labels = f'edge="{edge}",outcome="refused",reason="{reason}",tenant="{self.name}"'
        return metrics(self.served.http).get(f"taskmix_requests_total{{{labels}}}", 0.0)


@pytest.fixture(scope="module")
def admin(
    models: Models, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Served, Client]]:
    """A server that runs few answers at a time, and who administers it."""
    state = tmp_path_factory.mktemp("limited")
    taskmix("tenants", "create", "ops", "--role", "admin", "--state", state)
    key = taskmix("keys", "create", "ops", "--state", state).strip()
    flags = ("--metrics-open", "--max-num-seqs", str(SEATS), "--max-queued", str(QUEUE))
    with (
        serving(models.base, models.bank, state, *flags) as served,
        Client(served.grpc, key, timeout_s=60) as ops,
    ):
        yield served, ops


@pytest.fixture(scope="module")
def early(admin: tuple[Served, Client]) -> User:
    """The tenant of the first tests: for a while seats are kept for each one that had any."""
    return new_user(admin)


@pytest.fixture
def user(admin: tuple[Served, Client]) -> User:
    return new_user(admin)


def new_user(admin: tuple[Served, Client]) -> User:
    served, ops = admin
    name = f"user-{next(_numbers)}"
    ops.create_tenant(Tenant(name, tasks=("*",), verbs=("tasks.load", "tasks.unload")))
    return User(served, ops, name, ops.create_key(name).secret)


def complete(http: httpx.Client, **body: Any) -> httpx.Response:
    return http.post("/v1/completions", json={"prompt": PROMPT, "max_tokens": 2, **body})


def wait_told(user: User, reason: str) -> float:
    """Both edges must refuse a request with 429 now; seconds that the gRPC edge says to wait."""
    with user.http() as http, user.client(max_attempts=1) as client:
        refused = complete(http)
        with pytest.raises(tm.ResourceExhaustedError) as caught:
            client.generate(PROMPT, max_tokens=2)
    assert refused.status_code == 429, refused.text
    error = refused.json()["error"]
    assert (error["type"], error["code"]) == ("ResourceExhaustedError", 429)
    wait_s = caught.value.retry_after_s
    assert wait_s is not None
    assert 0.0 < wait_s <= int(refused.headers["retry-after"])
    for edge in ("grpc", "http"):
        assert user.num_refused(edge, f"limit_{reason}") >= 1.0
    return wait_s


@contextmanager
def busy(user: User, num_waiting: int) -> Iterator[None]:
    """The user has every seat and so many requests in line, since the engine stands still."""
    with user.client() as client:
        client.generate(PROMPT, max_tokens=1)  # its key is known then
        asking = [
            threading.Thread(target=client.generate, args=(PROMPT,), kwargs={"max_tokens": 1})
            for _ in range(SEATS + num_waiting)
        ]
        with user.served.frozen():
            for thread in asking:
                thread.start()
            eventually(lambda: user.num_waiting == num_waiting)
            yield
        for thread in asking:
            thread.join()


def test_concurrency(early: User) -> None:
    early.limit(max_concurrency=SEATS + 1)
    with busy(early, num_waiting=1):
        wait_told(early, "concurrency")
    with early.client() as client:
        assert client.generate(PROMPT, max_tokens=1).token_ids


def test_queued(early: User) -> None:
    early.limit(max_queued=1)
    with busy(early, num_waiting=1):
        wait_told(early, "queue")


def test_a_tenant_leaves_half_of_the_queue_to_others(early: User) -> None:
    early.limit()
    with busy(early, num_waiting=QUEUE // 2):
        wait_told(early, "queue")


def test_requests_per_second_and_who_comes_back_as_told(user: User) -> None:
    user.limit(requests_per_s=0.5)
    with user.client() as patient:
        patient.generate(PROMPT, max_tokens=1)
        asked_s = time.monotonic()
        wait_s = wait_told(user, "requests")
        assert wait_s <= 2.0
        patient.generate(PROMPT, max_tokens=1)  # goes again by itself when it is time
        assert time.monotonic() - asked_s >= wait_s


def test_tokens_per_second_are_those_that_answers_report(user: User) -> None:
    """What a tenant has to pay off is what its answer said it used, to the token."""
    user.limit(tokens_per_s=5.0)
    with user.client() as client:
        started_s = time.monotonic()
        usage = client.generate(PROMPT, mix="a", max_tokens=40, ignore_eos=True, n=2).usage
        wait_s = wait_told(user, "tokens")
        passed_s = time.monotonic() - started_s
    num_tokens = usage.prompt_tokens + usage.completion_tokens
    assert num_tokens == len(PROMPT) + 80
    debt_s = (num_tokens - 5 + 1) / 5.0  # there were 5, and 1 is needed
    assert debt_s - passed_s <= wait_s <= debt_s


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("body", "num_prompt_tokens", "num_answers"),
    [
        ({}, len(PROMPT), 1),
        ({"n": 2}, len(PROMPT), 2),
        ({"prompt": [PROMPT, "x"], "n": 2}, len(PROMPT) + 1, 4),
    ],
    ids=str,
)
def test_http_is_charged_alike(
    user: User, body: dict[str, Any], num_prompt_tokens: int, num_answers: int, stream: bool
) -> None:
    user.limit(tokens_per_s=1.0)
    with user.http() as http:
        started_s = time.monotonic()
        answer = complete(http, max_tokens=30, ignore_eos=True, stream=stream, **body)
        assert answer.status_code == 200, answer.text
        refused = complete(http)
        passed_s = time.monotonic() - started_s
    assert refused.status_code == 429
    debt_s = num_prompt_tokens + 30 * num_answers
    assert debt_s - passed_s <= int(refused.headers["retry-after"]) <= debt_s


def test_charges_are_what_metrics_count(user: User) -> None:
    with user.client() as client, user.http() as http:
        used = [client.generate(PROMPT, mix="a", max_tokens=9, n=3).usage]
        for body in ({"prompt": [PROMPT, "x"], "n": 2}, {"prompt": "y"}):
            counted = complete(http, model="a", **body).json()["usage"]
            used.append(tm.Usage(counted["prompt_tokens"], counted["completion_tokens"], 0))
    labels = f'{{mix="a",tenant="{user.name}"}}'
    seen = metrics(user.served.http)
    prompt = sum(usage.prompt_tokens for usage in used)
    output = sum(usage.completion_tokens for usage in used)
    assert seen[f"taskmix_prompt_tokens_total{labels}"] == prompt
    assert seen[f"taskmix_output_tokens_total{labels}"] == output


@pytest.mark.parametrize(
    ("limit", "asked"),
    [
        ({"max_prompt_tokens": len(PROMPT) - 1}, {}),
        ({"max_output_tokens": 1}, {}),
        ({"max_concurrency": 3}, {"n": 4}),
    ],
    ids=str,
)
def test_what_is_too_much_for_one_request(
    user: User, limit: dict[str, int], asked: dict[str, int]
) -> None:
    (name,) = limit
    user.limit(**limit)
    chat = {"messages": TURNS, "max_completion_tokens": 2, **asked}
    with user.http() as http, user.client() as client:
        refusals = [complete(http, stream=stream, **asked) for stream in (False, True)]
        refusals.append(http.post("/v1/chat/completions", json=chat))
        for refused in refusals:
            assert refused.status_code == 400, refused.text
            assert refused.json()["error"]["type"] == "InvalidRequestError"
            assert name in refused.json()["error"]["message"]
        with pytest.raises(tm.InvalidArgumentError, match=name):
            client.generate(PROMPT, max_tokens=2, **asked)
        assert user.num_refused("http", "invalid") == 3.0
        user.limit()
        assert complete(http, **asked).status_code == 200


def test_a_length_counts_where_vllm_reads_it(user: User) -> None:
    """`/v1/completions` knows no `max_completion_tokens`, the chat's route knows both."""
    user.limit(max_output_tokens=5)
    short = {"max_completion_tokens": 1, "ignore_eos": True}
    with user.http() as http:
        refused = complete(http, **{**short, "max_tokens": 40})
        assert refused.status_code == 400, refused.text
        assert "max_output_tokens" in refused.json()["error"]["message"]
        answers = (
            (http.post("/v1/completions", json={"prompt": PROMPT, **short}), 5),
            (http.post("/v1/chat/completions", json={"messages": TURNS, **short}), 1),
        )
        for answer, num_tokens in answers:
            assert answer.json()["usage"]["completion_tokens"] == num_tokens


def test_a_body_that_is_refused_was_a_request(user: User) -> None:
    user.limit(requests_per_s=1e-3)
    with user.http() as http:
        answers = [http.post("/v1/completions", content=b"{") for _ in range(2)]
    assert [answer.status_code for answer in answers] == [400, 429]


def test_who_names_no_length_gets_what_is_allowed(user: User) -> None:
    user.limit(max_output_tokens=5)
    bodies = {"/v1/completions": {"prompt": PROMPT}, "/v1/chat/completions": {"messages": TURNS}}
    with user.http() as http, user.client() as client:
        for path, body in bodies.items():
            answer = http.post(path, json={"ignore_eos": True, **body})
            assert answer.json()["usage"]["completion_tokens"] == 5
        assert client.generate(PROMPT, ignore_eos=True).usage.completion_tokens == 5


def test_bytes_of_tasks(user: User) -> None:
    sizes = {task.name: task.num_bytes for task in user.ops.tasks()}
    with user.client(max_attempts=1) as client:
        for name in "abc":
            client.unload_task(name)
        user.limit(max_resident_bytes=sizes["a"] + sizes["c"])
        client.load_task("a")
        with pytest.raises(tm.ResourceExhaustedError, match="max_resident_bytes"):
            client.load_task("b")
        client.load_task("c")
        user.ops.load_task("b")  # is not the user's then
        client.load_task("b")
        client.unload_task("c")
        user.limit(max_resident_bytes=sizes["a"])
        with pytest.raises(tm.ResourceExhaustedError, match="max_resident_bytes"):
            client.load_task("c")
        user.ops.load_task("c")
