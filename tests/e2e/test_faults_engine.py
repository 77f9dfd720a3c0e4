"""The engine's process is killed under load, or hangs: what is open ends, and all comes back."""

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import httpx
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from taskmix_client import Client, UnavailableError
from taskmix_server.runtime.liveness import POLL_S
from tests.support.models import Models, make_models
from tests.support.served import Served, metrics, serving
from tests.support.waiting import all_gone, eventually

PROMPT = "Once upon a time"
GREEDY: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0, "ignore_eos": True}
ENDLESS: dict[str, Any] = {"max_tokens": 480, "ignore_eos": True, "n": 4}
NOTICED_S = 5.0
HANGS_S = 8.0
ENDED_S = 30.0
BACK_S = 120.0
STOPPED_S = 20.0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def served(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    flags = ("--engine-timeout", str(HANGS_S))
    with serving(models.base, models.bank, tmp_path_factory.mktemp("state"), *flags) as server:
        yield server


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Client]:
    with Client(served.grpc, timeout_s=60, max_attempts=1) as opened:
        yield opened


@pytest.fixture(scope="module")
def http(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.http, timeout=60) as opened:
        yield opened


def engine_of(served: Served) -> psutil.Process:
    (engine,) = (
        child
        for child in psutil.Process(served.process.pid).children()
        if "EngineCore" in " ".join(child.cmdline())
    )
    return engine


def is_ready(http: httpx.Client) -> bool:
    return http.get("/readyz").status_code == 200


def is_serving(served: Served) -> bool:
    with grpc.insecure_channel(served.grpc) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        health = stub.Check(health_pb2.HealthCheckRequest())
    return bool(health.status == health_pb2.HealthCheckResponse.SERVING)


def stream_over_http(http: httpx.Client, begin: Callable[[], None]) -> list[str]:
    """The events of a stream that ends as HTTP asks; `begin` is called with the first of them."""
    body = {"model": "b", "prompt": PROMPT, "stream": True, **ENDLESS}
    with http.stream("POST", "/v1/completions", json=body) as response:
        assert response.status_code == 200
        lines = response.iter_lines()
        events = [next(lines)]
        begin()
        return [event for event in (*events, *lines) if event]


def stream_over_grpc(client: Client, begin: Callable[[], None]) -> None:
    chunks = client.stream(PROMPT, mix_name="prod", **ENDLESS)
    next(chunks)
    begin()
    for _ in chunks:
        pass


def greedy_answers(client: Client, http: httpx.Client) -> list[Any]:
    """What the named mix and a task answer through both edges."""
    body = {"prompt": PROMPT, **GREEDY}
    return [
        client.generate(PROMPT, mix_name="prod", **GREEDY).token_ids,
        client.generate(PROMPT, mix="a", **GREEDY).token_ids,
        *(
            http.post("/v1/completions", json={"model": model, **body}).json()["choices"][0]["text"]
            for model in ("prod", "b", "base")
        ),
    ]


def assert_cut(stream: list[str]) -> None:
    """An event says why the stream ends, and the stream ends."""
    errors = [json.loads(event.removeprefix("data: ")) for event in stream if '"error"' in event]
    assert len(errors) == 1, stream[-3:]
    assert stream[-1] == "data: [DONE]"


def test_one_process_schedules_and_computes(served: Served) -> None:
    """On all cores but the one that vLLM leaves free by default."""
    engine = engine_of(served)
    assert not engine.children()
    front = psutil.Process(served.process.pid)
    assert set(engine.cpu_affinity()) < set(front.cpu_affinity())


@pytest.mark.timeout(300)
def test_the_engine_is_killed_mid_stream(
    served: Served, client: Client, http: httpx.Client
) -> None:
    client.register_mix("prod", "a:0.7+b:0.3")
    client.unload_task("c")
    tasks, answers = client.tasks(), greedy_answers(client, http)
    engine = engine_of(served)
    body = {"model": "a", "prompt": PROMPT, **ENDLESS}
    with ThreadPoolExecutor() as threads:
        begun: list[Future[None]] = [Future(), Future()]
        streams: list[Future[Any]] = [
            threads.submit(stream_over_http, http, lambda: begun[0].set_result(None)),
            threads.submit(stream_over_grpc, client, lambda: begun[1].set_result(None)),
        ]
        for started in begun:
            started.result(ENDED_S)
        engine.suspend()  # so that nothing ends on its own
        whole: list[Future[Any]] = [
            threads.submit(http.post, "/v1/completions", json=body),
            threads.submit(client.generate, PROMPT, mix="b", **ENDLESS),
        ]
        eventually(lambda: metrics(served.http)["taskmix_task_references"] == 5.0)
        assert not any(request.done() for request in (*streams, *whole))
        engine.send_signal(signal.SIGKILL)
        eventually(lambda: not is_ready(http), within_s=NOTICED_S)
        eventually(lambda: not is_serving(served), within_s=NOTICED_S)
        assert_cut(streams[0].result(ENDED_S))
        assert isinstance(streams[1].exception(ENDED_S), UnavailableError)
        assert whole[0].result(ENDED_S).status_code == 503
        assert isinstance(whole[1].exception(ENDED_S), UnavailableError)
    assert http.get("/healthz").status_code == 200
    with pytest.raises(UnavailableError, match="started again"):
        client.generate(PROMPT, mix="a", max_tokens=1)
    assert http.post("/v1/completions", json=body).status_code == 503
    with pytest.raises(UnavailableError):
        client.load_task("c")
    eventually(lambda: is_ready(http), within_s=BACK_S)
    eventually(lambda: is_serving(served), within_s=NOTICED_S)
    assert client.tasks() == tasks
    assert greedy_answers(client, http) == answers
    client.load_task("c")
    seen = metrics(served.http)
    assert seen['taskmix_engine_restarts_total{outcome="ok"}'] == 1.0
    assert seen["taskmix_engine_up"] == 1.0
    assert seen["taskmix_task_references"] == seen["taskmix_requests_running"] == 0.0
    assert all_gone([engine])


def test_the_engine_hangs(served: Served, client: Client, http: httpx.Client) -> None:
    engine = engine_of(served)
    with ThreadPoolExecutor() as threads:
        engine.suspend()
        hanging = threads.submit(client.generate, PROMPT, mix="b", **ENDLESS)
        eventually(lambda: not is_ready(http), within_s=POLL_S + HANGS_S + NOTICED_S)
        assert isinstance(hanging.exception(ENDED_S), UnavailableError)
    assert "has given no answer for 8 s" in served.log.read_text()
    eventually(lambda: all_gone([engine]), within_s=ENDED_S)
    eventually(lambda: is_ready(http), within_s=BACK_S)
    assert client.generate(PROMPT, mix="b", **GREEDY).token_ids


def test_the_engine_is_killed_and_the_server_stopped(served: Served, http: httpx.Client) -> None:
    """Stopping does not wait for the engine that is being started."""
    front = psutil.Process(served.process.pid)
    engine = engine_of(served)
    engine.send_signal(signal.SIGKILL)
    eventually(lambda: not is_ready(http), within_s=NOTICED_S)
    eventually(lambda: engine.pid not in {child.pid for child in front.children(recursive=True)})
    eventually(lambda: engine_starts(front), within_s=ENDED_S)
    left = front.children(recursive=True)
    served.signal(signal.SIGTERM)
    assert served.process.wait(STOPPED_S) == 0
    eventually(lambda: all_gone(left))


def engine_starts(front: psutil.Process) -> bool:
    """Whether a process of a new engine is there."""
    for child in front.children():
        with suppress(psutil.NoSuchProcess):  # the dead engine's, which may go at any moment
            if "multiprocessing.spawn" in " ".join(child.cmdline()):
                return True
    return False
