"""A server's life as an operator sees it: what was registered stays, signals drain, nothing is
orphaned."""

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import httpx
import openai
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from taskmix_client import Client, UnavailableError
from tests.support.experiments import SUBJECTS, arms_of, started
from tests.support.models import Models, make_models
from tests.support.served import Served, metrics, serving
from tests.support.waiting import all_gone, eventually

PROMPT = "Once upon a time"
MIX = "a:0.7+b:0.3"
OPTIONS: dict[str, Any] = {"max_tokens": 64, "temperature": 0.0, "ignore_eos": True}
GONE_S = 15.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


def assert_draining(served: Served, client: Client) -> None:
    """New requests are told to go elsewhere while an old one is still running."""
    with httpx.Client(base_url=served.http, timeout=30) as http:
        eventually(lambda: http.get("/readyz").status_code == 503, within_s=5)
        assert http.get("/healthz").status_code == 200
        refusal = http.post("/v1/completions", json={"model": MIX, "prompt": PROMPT})
    assert refusal.status_code == 503
    assert "shutting down" in refusal.json()["error"]["message"]
    with pytest.raises(UnavailableError, match="shutting down"):
        client.generate(PROMPT)
    with grpc.insecure_channel(served.grpc) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        health = stub.Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING


def stopped_in_flight(served: Served, client: Client, stop: Callable[[], None]) -> tuple[int, ...]:
    """The tokens of a stream that was in flight when the server was told to stop."""
    stream = client.stream(PROMPT, mix_name="prod", **OPTIONS)
    with ThreadPoolExecutor() as threads:
        with served.frozen():
            chunks = threads.submit(list, stream)
            eventually(lambda: metrics(served.http)["taskmix_task_references"] > 0.0)
            stop()
            assert_draining(served, client)
        return tuple(token for chunk in chunks.result() for token in chunk.token_ids)


def test_mixes_and_arms_stay_and_signals_drain(models: Models, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with (
        serving(models.base, models.bank, state) as served,
        Client(served.grpc, timeout_s=60, max_attempts=1) as client,
    ):
        registered = client.register_mix("prod", MIX)
        whole = client.generate(PROMPT, mix_name="prod", **OPTIONS)
        started(client, "sticky", control="a", mixed=MIX)
        arms, traffic = arms_of(client, "sticky"), client.experiment_results("sticky").traffic
        tokens = stopped_in_flight(served, client, lambda: served.signal(signal.SIGTERM))
        assert tokens == whole.token_ids
        assert served.exit_code() == 0
        assert "draining" in served.log.read_text()

    with (
        serving(models.base, models.bank, state) as served,
        Client(served.grpc, timeout_s=60, max_attempts=1) as client,
    ):
        assert client.mixes() == (registered,)
        assert client.experiment_results("sticky").traffic == traffic
        assert arms_of(client, "sticky") == arms
        counted = client.experiment_results("sticky").traffic
        assert sum(arm.num_subjects for arm in counted) == len(SUBJECTS)
        tokens = stopped_in_flight(
            served, client, lambda: served.signal(signal.SIGINT, whole_group=True)
        )
        assert tokens == whole.token_ids
        assert served.exit_code() == 0


def test_the_command_line_as_typed(models: Models, tmp_path: Path) -> None:
    def taskmix(*arguments: str | Path) -> str:
        command = Path(sys.executable).with_name("taskmix")
        ran = subprocess.run([command, *arguments], check=True, capture_output=True, timeout=120)
        return ran.stdout.decode()

    bank = tmp_path / "bank"
    tasks = (f"--task=a={models.finetunes['a']}", f"--task=b={models.finetunes['b']}")
    taskmix("bank", "build", "--base", models.base, *tasks, "--scheme", "int4", "--out", bank)
    with serving(models.base, bank, tmp_path / "state") as served:
        ask = ("generate", "--server", served.grpc, "--mix", MIX, "--max-tokens", "16")
        assert taskmix(*ask, "Hello").endswith("\n")
        greedy = taskmix(*ask, "--temperature", "0", "Hello")
        assert taskmix(*ask, "--temperature", "0", "--stream", "Hello") == greedy
        with openai.OpenAI(base_url=f"{served.http}/v1", api_key="unused") as sdk:
            completion = sdk.completions.create(
                model=MIX, prompt="Hello", max_tokens=16, temperature=0.0
            )
        assert f"{completion.choices[0].text}\n" == greedy
        assert "int4" in taskmix("tasks", "list", "--server", served.grpc)
        assert_no_orphans(served)


def assert_no_orphans(served: Served) -> None:
    """Kill the front; its engine ends by itself."""
    children = psutil.Process(served.process.pid).children(recursive=True)
    assert children
    served.signal(signal.SIGKILL)
    served.exit_code()
    eventually(lambda: all_gone(children), within_s=GONE_S)
