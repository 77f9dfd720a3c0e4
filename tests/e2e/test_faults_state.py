"""What a server keeps: its database and its bank fail under it, and it is killed with work to do.

One server for all of it, then one more on what it left.
"""

import resource
import shutil
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from taskmix_client import (
    Client,
    FailedPreconditionError,
    NotFoundError,
    TaskMixError,
    Tenant,
    UnavailableError,
)
from taskmix_server.database.connection import FILENAME
from tests.support.models import Models, make_models
from tests.support.served import Served, admin_key, metrics, serving, taskmix
from tests.support.tiny import TinyModel, make_base, make_finetune
from tests.support.waiting import all_gone, eventually

MIX = "a:0.7+b:0.3"
NUM_KEYS = 5
NUM_AT_ONCE = 8
ANSWERED_S = 30.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def key(state: Path) -> str:
    """The key of an admin, who makes every call here."""
    return admin_key(state)


@pytest.fixture(scope="module")
def served(models: Models, state: Path, key: str) -> Iterator[Served]:
    with serving(models.base, models.bank, state, "--metrics-open") as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served, key: str) -> Iterator[Client]:
    with Client(served.grpc, key, timeout_s=60, max_attempts=1) as opened:
        yield opened


def assert_generates(served: Served, client: Client, key: str) -> None:
    """Requests that need nothing of what is broken are answered."""
    assert client.generate("x", mix=MIX, max_tokens=2).token_ids
    headers = {"authorization": f"Bearer {key}"}
    body = {"model": MIX, "prompt": "x", "max_tokens": 2}
    answer = httpx.post(f"{served.http}/v1/completions", json=body, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text


def assert_generates_at_once(served: Served, key: str) -> None:
    """Many requests are answered that are made at the same time, under a registered mix too."""
    headers = {"authorization": f"Bearer {key}"}
    models = [model for model in ("kept", MIX, "a:1") for _ in range(NUM_AT_ONCE)]
    with (
        ThreadPoolExecutor(len(models)) as threads,
        httpx.Client(base_url=served.http, headers=headers, timeout=60) as http,
    ):
        asked = [
            threads.submit(
                http.post,
                "/v1/completions",
                json={"model": model, "prompt": "x", "max_tokens": 1},
            )
            for model in models
        ]
        for answer in asked:
            assert answer.result().status_code == 200, answer.result().text


def assert_refuses_changes(served: Served, client: Client, key: str, reason: str) -> None:
    """A change is refused with a reason, half of it is nowhere, and other work goes on."""
    mixes, tenants, audited = client.mixes(), client.tenants(), client.audit()
    with ThreadPoolExecutor() as threads:
        registering = threads.submit(client.register_mix, "late", MIX)
        creating = threads.submit(client.create_tenant, Tenant("late"))
        assert_generates(served, client, key)
        for change in (registering, creating):
            with pytest.raises(UnavailableError, match=f"{reason}.*nothing was changed"):
                change.result()
    assert (client.mixes(), client.tenants(), client.audit()) == (mixes, tenants, audited)


def assert_takes_changes(client: Client) -> None:
    assert client.register_mix("late", MIX).name == "late"
    client.delete_mix("late")


@contextmanager
def no_room(process: psutil.Process) -> Iterator[None]:
    """Let a process write to no file: a disk that is full, for this process alone."""
    before = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def moved_away(path: Path) -> Iterator[Path]:
    """Another name for a file or directory, for the block."""
    away = path.rename(path.with_name(f"{path.name}-away"))
    try:
        yield away
    finally:
        if path.is_dir():
            shutil.rmtree(path)
        away.rename(path)


def test_a_database_that_is_locked(served: Served, client: Client, key: str, state: Path) -> None:
    other = sqlite3.connect(state / FILENAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert_refuses_changes(served, client, key, "locked|waiting")
    other.execute("ROLLBACK")
    other.close()
    assert_takes_changes(client)


@pytest.mark.timeout(120)
def test_many_changes_while_the_database_is_locked(
    served: Served, client: Client, state: Path
) -> None:
    """Each takes seconds to be refused, one after the other: who is far behind hears before."""

    def refused_after_s() -> float:
        asked_s = time.monotonic()
        with pytest.raises(UnavailableError, match="nothing was changed"):
            client.create_key("ops")
        return time.monotonic() - asked_s

    known = client.keys()
    other = sqlite3.connect(state / FILENAME, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(10) as threads:
        waits_s = [threads.submit(refused_after_s) for _ in range(10)]
        assert max(wait_s.result() for wait_s in waits_s) < ANSWERED_S
    other.execute("ROLLBACK")
    other.close()
    assert client.keys() == known
    assert_takes_changes(client)


def test_a_disk_that_is_full(served: Served, client: Client, key: str) -> None:
    with no_room(psutil.Process(served.process.pid)):
        assert_refuses_changes(served, client, key, "disk|full")
    assert_takes_changes(client)


def test_a_database_that_is_gone(served: Served, client: Client, key: str, state: Path) -> None:
    client.register_mix("kept", MIX)
    with moved_away(state / FILENAME):
        assert_generates_at_once(served, key)
        assert_refuses_changes(served, client, key, "gone")
        assert not (state / FILENAME).exists()
    assert_takes_changes(client)


def assert_serves_what_is_loaded(served: Served, client: Client, key: str) -> None:
    assert_generates(served, client, key)
    assert {task.name for task in client.tasks()} >= {"a", "b"}


def test_a_bank_that_is_gone_or_replaced(
    served: Served, client: Client, key: str, models: Models, tmp_path: Path
) -> None:
    client.unload_task("c")
    with moved_away(models.bank):
        with pytest.raises(TaskMixError, match="bank"):
            client.load_task("c")
        assert_serves_what_is_loaded(served, client, key)
        other = make_base(tmp_path / "other", TinyModel(seed=9))
        tuned = make_finetune(other, tmp_path / "tuned", seed=1)
        taskmix("bank", "build", "--base", other, f"--task=c={tuned}", "--out", models.bank)
        with pytest.raises(FailedPreconditionError, match="another base"):
            client.load_task("c")
        assert_serves_what_is_loaded(served, client, key)
    with pytest.raises(NotFoundError):
        client.generate("x", mix="c", max_tokens=1)
    client.load_task("c")
    assert client.generate("x", mix="c", max_tokens=1).token_ids


@pytest.mark.timeout(300)
def test_killed_with_requests_running(
    served: Served, client: Client, key: str, state: Path, models: Models
) -> None:
    """What was acknowledged is there after the next start; what was not may be, but whole."""
    children = psutil.Process(served.process.pid).children(recursive=True)
    options = {"max_tokens": 480, "ignore_eos": True, "n": 4}
    with ThreadPoolExecutor(16) as threads:
        running = [
            threads.submit(client.generate, "x", mix="a", **options)  # type: ignore[arg-type]
            for _ in range(8)
        ]
        eventually(lambda: metrics(served.http)["taskmix_requests_running"] > 0.0)
        client.create_tenant(Tenant("users", tasks=("a",), mixes=("prod*",)))
        keys = [client.create_key("users") for _ in range(NUM_KEYS)]
        client.revoke_key(keys[0].key.id)
        mixes = [client.register_mix(f"prod-{number}", MIX) for number in range(NUM_KEYS)]
        audited = client.audit()
        served.signal(signal.SIGKILL)
        for request in running:
            assert request.exception(30) is None or isinstance(
                request.exception(), UnavailableError
            )
    served.exit_code()
    eventually(lambda: all_gone(children))

    with (
        serving(models.base, models.bank, state) as again,
        Client(again.grpc, key, timeout_s=60, max_attempts=1) as ops,
    ):
        assert ops.audit() == audited
        assert [mix for mix in ops.mixes() if mix.name.startswith("prod")] == mixes
        assert [tenant.name for tenant in ops.tenants()] == ["ops", "users"]
        assert {made.key.id for made in keys} == {found.id for found in ops.keys("users")}
        assert ops.generate("x", mix_name="prod-0", max_tokens=1).token_ids
        for number, made in enumerate(keys):
            with Client(again.grpc, made.secret, timeout_s=60, max_attempts=1) as user:
                if number == 0:
                    with pytest.raises(TaskMixError, match="API key"):
                        user.tasks()
                else:
                    assert [task.name for task in user.tasks()] == ["a"]
