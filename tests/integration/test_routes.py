"""What is open: two generation routes, models, metrics and health, and nothing else of vLLM's."""

from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.support.served import Served

SERVICES = ("taskmix.v1.InferenceService", "taskmix.v1.BankService", "taskmix.v1.AdminService")

CLOSED = (
    *("/", "/docs", "/redoc", "/openapi.json", "/version", "/load", "/ping", "/health"),
    *("/tokenize", "/detokenize", "/tokenizer_info", "/invocations", "/server_info"),
    *("/v1/responses", "/v1/messages", "/v1/embeddings", "/v1/audio/transcriptions", "/v1/rerank"),
    *("/pooling", "/classify", "/score", "/generative_scoring"),
    *("/inference/v1/generate", "/inference/v1/abort_requests", "/scale_elastic_ep"),
    *("/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/sleep", "/wake_up", "/is_sleeping"),
    *("/collective_rpc", "/reset_prefix_cache", "/start_profile", "/stop_profile", "/pause"),
    *("/v1/completions/render", "/v1/chat/completions/render", "/v1/completions/", "//v1/models"),
)


@pytest.mark.parametrize("path", CLOSED)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_closed(http: httpx.Client, method: str, path: str) -> None:
    response = http.request(method, path, json={} if method == "POST" else None)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "NotFoundError"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/completions"),
        ("GET", "/v1/chat/completions"),
        ("POST", "/v1/models"),
        ("POST", "/metrics"),
        ("DELETE", "/healthz"),
    ],
)
def test_other_methods(http: httpx.Client, method: str, path: str) -> None:
    assert http.request(method, path).status_code == 405


def test_health(http: httpx.Client) -> None:
    assert http.get("/healthz").text == "ok\n"
    assert http.get("/readyz").text == "ready\n"


def test_grpc_health(served: Served) -> None:
    with grpc.insecure_channel(served.grpc) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for service in ("", *SERVICES):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=30)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_services(served: Served) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    with grpc.insecure_channel(served.grpc) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=30)
    assert {*SERVICES} < {service.name for service in answer.list_services_response.service}
