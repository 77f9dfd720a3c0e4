"""Clients that stop reading, on one server: they are cut off, and cannot hold it when it stops."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import psutil
import pytest

from taskmix.v1 import inference_pb2 as pb
from taskmix.v1 import inference_pb2_grpc
from taskmix_client import Client
from taskmix_server.rest.connection import READER_S
from tests.support.models import Models, make_models
from tests.support.served import Served, metrics, serving
from tests.support.waiting import all_gone, eventually

NUM_HTTP = 180
NUM_GRPC = 20
LONG_NAME = "a:1." + "0" * 2000
"""Of task a, as it is. It stands in every event of an answer."""

FLAGS = ("--max-queued", "4096")
CUT_S = 30.0
GENERATED_S = 150.0
STOPPED_S = 30.0
GROWTH_BYTES = 128 * 2**20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def served(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(models.base, models.bank, tmp_path_factory.mktemp("state"), *FLAGS) as server:
        yield server


def stalled_over_http(served: Served) -> socket.socket:
    """A connection whose answer is far larger than what fits on the way, and that is not read."""
    host, _, port = served.http.removeprefix("http://").partition(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(GENERATED_S)
    connection.connect((host, int(port)))
    fields = {"model": LONG_NAME, "prompt": "x", "max_tokens": 256, "ignore_eos": True}
    body = json.dumps({**fields, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    connection.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
    return connection


def narrow(served: Served) -> grpc.Channel:
    """A channel that takes little ahead of its reader."""
    options = (("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0))
    return grpc.insecure_channel(served.grpc, options)


def stalled_over_grpc(channel: grpc.Channel) -> Any:
    """A call whose answer is larger than what fits on the way, and of which one piece is read."""
    sampling = pb.Sampling(max_tokens=480, ignore_eos=True, n=4)
    request = pb.GenerateRequest(prompt="x", sampling=sampling)
    request.mix.expression = "b"
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    call = stub.StreamGenerate(pb.StreamGenerateRequest(request=request), timeout=GENERATED_S)
    next(call)
    return call


def is_whole(connection: socket.socket) -> bool:
    """Whether an answer that is read now goes on to its end, and not to an error."""
    received = bytearray()
    try:
        while piece := connection.recv(2**16):
            received += piece
            if b"[DONE]" in received[-200:]:
                return b'"error"' not in received
    except ConnectionResetError:
        return False
    return False


def num_connections(front: psutil.Process) -> int:
    return sum(1 for found in front.net_connections("tcp") if found.status != "LISTEN")


@pytest.mark.timeout(300)
def test_two_hundred_clients_stop_reading(served: Served) -> None:
    front = psutil.Process(served.process.pid)
    with Client(served.grpc, timeout_s=GENERATED_S) as client:
        assert client.generate("x", mix="a", max_tokens=2).token_ids
    before = front.memory_info().rss
    with ExitStack() as opened:
        channels = [opened.enter_context(narrow(served)) for _ in range(NUM_GRPC)]
        calls = [stalled_over_grpc(channel) for channel in channels]
        stalled = [opened.enter_context(stalled_over_http(served)) for _ in range(NUM_HTTP)]
        client = opened.enter_context(Client(served.grpc, timeout_s=GENERATED_S))
        eventually(lambda: metrics(served.http)["taskmix_task_references"] >= NUM_HTTP)
        assert client.generate("x", mix="a", max_tokens=2).token_ids
        eventually(
            lambda: not metrics(served.http)["taskmix_requests_running"], within_s=GENERATED_S
        )
        assert client.generate("x", mix="a", max_tokens=2).token_ids
        eventually(
            lambda: not metrics(served.http)["taskmix_task_references"],
            within_s=READER_S + CUT_S,
        )
        eventually(lambda: num_connections(front) <= NUM_GRPC + 1, within_s=CUT_S)
        grown = front.memory_info().rss - before
        assert grown < GROWTH_BYTES, f"{grown / 2**20:.0f} MiB more than before"
        assert not any(is_whole(connection) for connection in stalled)
        for call in calls:
            with pytest.raises(grpc.RpcError, match="nothing of the answer was read"):
                list(call)
            assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert client.generate("x", mix="a", max_tokens=2).token_ids


def test_stopping_does_not_wait_for_them(served: Served) -> None:
    """Nor for streams that make no progress, nor for an engine that does not answer."""
    engine = psutil.Process(served.process.pid).children(recursive=True)
    with ExitStack() as opened:
        channel = opened.enter_context(narrow(served))
        calls = [stalled_over_grpc(channel) for _ in range(2)]
        stalled = [opened.enter_context(stalled_over_http(served)) for _ in range(8)]
        eventually(lambda: metrics(served.http)["taskmix_task_references"] == 10.0)
        for process in engine:
            process.suspend()
        begun_s = time.monotonic()
        served.signal(signal.SIGTERM)
        assert served.process.wait(STOPPED_S) == 0
        assert time.monotonic() - begun_s < STOPPED_S
        assert not any(is_whole(connection) for connection in stalled)
        del calls
    for process in engine:
        with suppress(psutil.NoSuchProcess):
            process.resume()
    eventually(lambda: all_gone(engine))
