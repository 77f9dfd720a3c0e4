"""Every RPC and route against every kind of key, taken from what is served."""

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool, message_factory
from grpc import StatusCode

from taskmix_server.errors import UnauthenticatedError
from taskmix_server.rest.app import build_app, calls
from taskmix_server.rpc.server import HEALTH, SERVICES, methods
from taskmix_server.services.access import AccessService
from taskmix_server.tenancy.rules import METRICS, RULES, check_covered
from tests.unit.server.conftest import Parts
from tests.unit.server.secured import Secured, answered, secured

REFLECTION = "grpc.reflection.v1alpha.ServerReflection"
METHODS = methods((*SERVICES, HEALTH, REFLECTION))
ROUTES = [
    *(("POST", "/v1/completions"), ("POST", "/v1/chat/completions"), ("GET", "/v1/models")),
    *(("GET", "/metrics"), ("GET", "/healthz"), ("GET", "/readyz")),
]

NOT_KEYS = {
    "no key": None,
    "an empty one": "",
    "no form of ours": "sk-1234",
    "an unknown id": "tmx_0123456789ab_" + "x" * 43,
    "too long": "tmx_0123456789ab_" + "x" * 1_000,
}
OPEN = {
    f"/{HEALTH}/Check",
    f"/{HEALTH}/List",
    f"/{HEALTH}/Watch",
    f"/{REFLECTION}/ServerReflectionInfo",
    "GET /healthz",
    "GET /readyz",
}
# Calls that the tenant `bare`, who has no verbs and is no admin, gets past the door.
FOR_ANY_KEY = {
    "/taskmix.v1.InferenceService/Generate",
    "/taskmix.v1.InferenceService/StreamGenerate",
    "/taskmix.v1.BankService/ListTasks",
    "/taskmix.v1.BankService/ListMixes",
    "/taskmix.v1.ExperimentService/GetExperiment",
    "/taskmix.v1.ExperimentService/ListExperiments",
    "POST /v1/completions",
    "POST /v1/chat/completions",
    "GET /v1/models",
}
# Calls that the tenant `full`, who was given all verbs, gets past the door too.
FOR_VERBS = {
    *(
        f"/taskmix.v1.BankService/{name}"
        for name in ("LoadTask", "UnloadTask", "RegisterMix", "DeleteMix")
    ),
    *(
        f"/taskmix.v1.ExperimentService/{name}Experiment"
        for name in ("Create", "Start", "Ramp", "Stop", "Promote", "Rollback")
    ),
    "/taskmix.v1.ExperimentService/RecordOutcomes",
    "/taskmix.v1.ExperimentService/GetResults",
}
FIELDS: Mapping[str, Any] = {  # names are a right of their own
    "RegisterMix": {"name": "full-mix"},
    "CreateExperiment": {"design": {"name": "full-test"}},
    "PromoteExperiment": {"mix_name": "full-mix"},
}
REFUSED = {StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED}
SECRETS = ("head", "late", "full", "ops", "tmx_")


@pytest.fixture
async def served(parts: Parts) -> AsyncIterator[Secured]:
    async with secured(parts) as opened:
        yield opened


async def call(served: Secured, method: str, key: str | None) -> tuple[StatusCode, str]:
    """The status and message of a next to empty request to an RPC."""
    service, _, name = method[1:].partition("/")
    described = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
    request: Any = message_factory.GetMessageClass(described.input_type)(**FIELDS.get(name, {}))
    metadata = None if key is None else (("authorization", f"Bearer {key}"),)
    make = (
        served.channel.stream_stream if described.client_streaming else served.channel.unary_stream
    )
    rpc: Any = make(method, request_serializer=lambda message: message.SerializeToString())
    sent = iter([request]) if described.client_streaming else request
    ongoing = rpc(sent, metadata=metadata, timeout=20)
    try:
        await anext(aiter(ongoing), None)  # an open stream may have no end of its own
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    ongoing.cancel()
    return StatusCode.OK, ""


def test_every_call_has_a_rule_and_every_rule_a_call(parts: Parts) -> None:
    app: Any = build_app(answered, parts.services, parts.engine, "tiny")  # type: ignore[arg-type]
    routes = [f"{method} {path}" for method, path in ROUTES]
    assert set(calls(app.routes)) == set(routes)
    assert set(RULES) == {*METHODS, *routes}
    assert (set(RULES) & OPEN) == OPEN


def test_a_call_without_a_rule_is_not_served() -> None:
    with pytest.raises(AssertionError, match="no rule says who may call"):
        check_covered(["/taskmix.v1.BankService/ListTasks", "/taskmix.v1.BankService/New"])


@pytest.mark.parametrize("kind", [*NOT_KEYS, "a wrong secret", "revoked"])
async def test_without_a_valid_key(served: Secured, kind: str) -> None:
    wrong = served.keys["ops"][:-4] + "AAAA"
    key = {**NOT_KEYS, "a wrong secret": wrong, "revoked": served.keys["revoked"]}[kind]
    for method in METHODS:
        status, message = await call(served, method, key)
        if method in OPEN:
            assert status not in REFUSED, method
        else:
            assert status is StatusCode.UNAUTHENTICATED, method
            assert message.startswith("no valid API key"), method
            assert not any(secret in message for secret in SECRETS), method
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    for method, path in [*ROUTES, ("GET", "/docs"), ("HEAD", "/metrics")]:
        response = await served.http.request(method, path, headers=headers)
        if f"{method} {path}" in OPEN:
            assert response.status_code == 200, path
        else:
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            assert not any(secret in response.text for secret in SECRETS), path


@pytest.mark.parametrize("tenant", ["bare", "full", "ops"])
async def test_with_a_key(served: Secured, tenant: str) -> None:
    allowed = {
        "bare": OPEN | FOR_ANY_KEY,
        "full": OPEN | FOR_ANY_KEY | FOR_VERBS,
        "ops": {*METHODS, "GET /metrics"} | FOR_ANY_KEY | OPEN,
    }[tenant]
    for method in METHODS:
        status, message = await call(served, method, served.keys[tenant])
        if method in allowed:
            assert status not in REFUSED, (method, message)
        else:
            assert status is StatusCode.PERMISSION_DENIED, method
            assert message.startswith(f"tenant '{tenant}' "), method
    headers = {"authorization": f"bearer {served.keys[tenant]}"}
    for method, path in ROUTES:
        response = await served.http.request(method, path, headers=headers, json={})
        expected = 200 if f"{method} {path}" in allowed else 403
        assert response.status_code == expected, path
    assert (await served.http.get("/docs", headers=headers)).status_code == 404
    hidden = await served.http.head("/metrics", headers=headers)
    assert hidden.status_code == (200 if tenant == "ops" else 403)


async def test_an_unknown_rpc_is_told_to_keys_alone(served: Secured) -> None:
    rpc: Any = served.channel.unary_unary("/taskmix.v1.BankService/New")
    for key, expected in (("wrong", StatusCode.UNAUTHENTICATED), ("bare", None)):
        metadata = (("authorization", f"Bearer {served.keys.get(key, key)}"),)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await rpc(b"", metadata=metadata, timeout=20)
        assert caught.value.code() is (expected or StatusCode.UNIMPLEMENTED)


@pytest.mark.parametrize(
    "header", ["KEY", "Basic KEY", "Bearer", "Bearer KEY extra", "Token KEY", "BearerKEY"]
)
async def test_other_schemes_are_no_keys(served: Secured, header: str) -> None:
    value = header.replace("KEY", served.keys["ops"])
    response = await served.http.get("/v1/models", headers={"authorization": value})
    assert response.status_code == 401


async def test_two_headers_count_as_the_first(served: Secured) -> None:
    headers = [("authorization", "Bearer wrong"), ("authorization", f"Bearer {served.keys['ops']}")]
    assert (await served.http.get("/v1/models", headers=headers)).status_code == 401


async def test_without_tenants_nobody_needs_a_key(parts: Parts) -> None:
    access = parts.services.access
    for key in (None, "none"):
        assert (await access.admit("/taskmix.v1.AdminService/ListAudit", key)).name == "default"


async def test_metrics_may_be_opened(served: Secured) -> None:
    access = AccessService(served.services.access.authenticator, (METRICS,))
    assert (await access.admit("GET /metrics", None)).name == "default"
    with pytest.raises(UnauthenticatedError):
        await access.admit("GET /v1/models", None)
