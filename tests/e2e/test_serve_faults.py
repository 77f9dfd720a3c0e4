"""A server that is stopped before it is ready, and one whose engine dies."""

import signal
import subprocess
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from taskmix_client import Client, UnavailableError
from tests.support.models import Models, make_models
from tests.support.served import FLAGS, TASKMIX, serving
from tests.support.waiting import eventually

GONE_S = 30.0
NOTICED_S = 5.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


def test_stopped_while_it_starts(models: Models, tmp_path: Path) -> None:
    command = [*TASKMIX, "serve", "--base", models.base, "--bank", models.bank, *FLAGS]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--state", tmp_path / "state"], stdout=subprocess.PIPE, stderr=log
        )
    front = psutil.Process(process.pid)
    eventually(lambda: bool(front.children()), within_s=60)
    engine = front.children(recursive=True)
    process.terminate()
    assert process.wait(timeout=10) == 0
    eventually(lambda: not any(child.is_running() for child in engine), within_s=GONE_S)
    remainder, _ = process.communicate(timeout=10)
    assert remainder == b"", "it never said that it was ready"


def test_a_dead_engine_is_reported(models: Models, tmp_path: Path) -> None:
    with (
        serving(models.base, models.bank, tmp_path / "state") as served,
        Client(served.grpc, timeout_s=30, max_attempts=1) as client,
        httpx.Client(base_url=served.http, timeout=30) as http,
        grpc.insecure_channel(served.grpc) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        assert client.generate("x", mix="a", max_tokens=1).token_ids
        for child in psutil.Process(served.process.pid).children():
            if "EngineCore" in child.name() or "EngineCore" in " ".join(child.cmdline()):
                child.send_signal(signal.SIGKILL)
        eventually(lambda: http.get("/readyz").status_code == 503, within_s=NOTICED_S)
        eventually(
            lambda: (
                health.Check(health_pb2.HealthCheckRequest()).status
                == health_pb2.HealthCheckResponse.NOT_SERVING
            ),
            within_s=NOTICED_S,
        )
        assert http.get("/healthz").status_code == 200
        with pytest.raises(UnavailableError, match="engine"):
            client.generate("x", mix="a", max_tokens=1)
        refusal = http.post("/v1/completions", json={"model": "a", "prompt": "x"})
        assert refusal.status_code == 503
