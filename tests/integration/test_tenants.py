"""Tenants on one real server, over TLS and through both edges."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import openai
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import taskmix_client as tm
from tests.integration.test_routes import CLOSED
from tests.support.certificates import issue
from tests.support.guarded import Guarded, guarding
from tests.support.models import Models
from tests.support.served import TASKMIX

TURNS = [{"role": "user", "content": "a conversation whose rendering fills more than two blocks"}]
BLOCK = 32


@pytest.fixture(scope="module")
def guarded(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with guarding(models, tmp_path_factory.mktemp("guarded")) as opened:
        yield opened


def prompt(name: str) -> str:
    return f"{name}: a prompt of its own that fills two blocks of thirty-two tokens"


def cached(guarded: Guarded, tenant: str, text: Any, mix: str) -> int:
    """Prompt tokens that were reused for a gRPC request."""
    with guarded.client(tenant) as client:
        asked: dict[str, Any] = {"messages": text} if text is TURNS else {"prompt": text}
        return client.generate(**asked, mix=mix, max_tokens=1).usage.cached_tokens


def complete(
    guarded: Guarded, tenant: str, path: str = "completions", **body: Any
) -> httpx.Response:
    with guarded.http(tenant) as http:
        return http.post(f"/v1/{path}", json={"max_tokens": 1, **body})


@pytest.mark.parametrize("mix", ["a", "base", "a:0.25"])
def test_keys_and_values_are_never_shared_over_grpc(guarded: Guarded, mix: str) -> None:
    for text in (prompt(f"grpc {mix}"), [*range(1, 70)], TURNS):
        assert cached(guarded, "alice", text, mix) == 0
        assert cached(guarded, "alice", text, mix) >= 2 * BLOCK - BLOCK
        assert cached(guarded, "bob", text, mix) == 0
        assert cached(guarded, "bob", text, mix) >= BLOCK
        assert cached(guarded, "ops", text, mix) == 0


@pytest.mark.parametrize("mix", ["a", "base", "a:0.75"])
def test_keys_and_values_are_never_shared_over_http(guarded: Guarded, mix: str) -> None:
    """What HTTP leaves in the cache is there for gRPC under the same key, and no other."""
    text = prompt(f"http {mix}")
    model = "base" if mix == "base" else mix
    assert complete(guarded, "alice", model=model, prompt=text).status_code == 200
    assert cached(guarded, "bob", text, mix) == 0
    assert cached(guarded, "alice", text, mix) >= BLOCK
    chat = complete(guarded, "bob", "chat/completions", model=model, messages=TURNS)
    assert chat.status_code == 200


def test_a_salt_of_the_caller_s_changes_nothing(guarded: Guarded) -> None:
    text = prompt("salted")
    for salt in ("mine", "other"):
        answer = complete(guarded, "alice", model="a", prompt=text, cache_salt=salt)
        assert answer.status_code == 200
    assert cached(guarded, "alice", text, "a") >= BLOCK
    assert cached(guarded, "bob", text, "a") == 0


def test_each_sees_its_own(guarded: Guarded) -> None:
    seen = {"alice": ["a", "c"], "bob": ["a", "b"], "carol": ["a", "b", "c"], "ops": [*"abc"]}
    for tenant, tasks in seen.items():
        with guarded.client(tenant) as client, guarded.http(tenant) as http:
            assert [task.name for task in client.tasks()] == tasks
            listed = [model["id"] for model in http.get("/v1/models").json()["data"]]
            assert listed == ["tiny-base", *tasks]


@pytest.mark.parametrize("model", ["b", "nosuch", "a:0.5+b:0.5", "a:0.5+nosuch:0.5"])
def test_a_task_of_others_is_unknown(guarded: Guarded, model: str) -> None:
    with guarded.client("alice") as client, pytest.raises(tm.NotFoundError) as caught:
        client.generate("x", mix=model)
    over_http = complete(guarded, "alice", model=model, prompt="x")
    assert over_http.status_code == 404
    message = str(caught.value)
    assert over_http.json()["error"]["message"] == message
    assert message.endswith("loaded tasks are: a, c (`taskmix tasks load NAME` loads one)")


def test_a_plane_of_others_is_unknown(guarded: Guarded) -> None:
    """ties.a was elected for a and b together, and alice does not know of b."""
    messages = set()
    for plane in ("ties.a", "nosuch"):
        mix = {"terms": [{"task": "a", "masks": [plane]}]}
        with guarded.client("alice") as client, pytest.raises(tm.InvalidArgumentError) as caught:
            client.generate("x", mix=mix)
        messages.add(str(caught.value).replace(f"'{plane}'", "PLANE"))
    assert len(messages) == 1
    assert "it has none" in messages.pop()
    both = {"terms": [{"task": t, "masks": [f"ties.{t}"]} for t in "ab"]}
    with guarded.client("bob") as client:
        assert client.generate("x", mix=both, max_tokens=1).token_ids


def test_what_a_tenant_may_write(guarded: Guarded) -> None:
    refusals = {"bob": "a:-0.5", "carol": "a:0.5"}
    for tenant, mix in refusals.items():
        with guarded.client(tenant) as client, pytest.raises(tm.PermissionDeniedError):
            client.generate("x", mix=mix)
        assert complete(guarded, tenant, model=mix, prompt="x").status_code == 403
        assert complete(guarded, tenant, model="a", prompt="x").status_code == 200
    assert complete(guarded, "alice", model="a:-0.5", prompt="x").status_code == 200


def test_mixes_by_name(guarded: Guarded) -> None:
    with guarded.client("alice") as alice, guarded.client("ops") as ops:
        ops.register_mix("alice-b", "b")  # her name, not her task
        alice.register_mix("alice-1", "a:0.5+c:0.5")
        assert [mix.name for mix in alice.mixes()] == ["alice-1"]
        assert complete(guarded, "alice", model="alice-1", prompt="x").status_code == 200
        assert complete(guarded, "carol", model="alice-1", prompt="x").status_code == 404
        with pytest.raises(tm.PermissionDeniedError):
            alice.register_mix("prod", "a")
        alice.delete_mix("alice-1")
        with pytest.raises(tm.NotFoundError):
            alice.delete_mix("alice-b")
        ops.delete_mix("alice-b")
        verbs = [(record.tenant, record.verb, record.subject) for record in ops.audit(limit=4)]
        assert verbs == [
            ("ops", "mixes.delete", "alice-b"),
            ("alice", "mixes.delete", "alice-1"),
            ("alice", "mixes.register", "alice-1"),
            ("ops", "mixes.register", "alice-b"),
        ]


@pytest.mark.parametrize("key", ["", "wrong", "tmx_0123456789ab_" + "x" * 43])
def test_without_a_key(guarded: Guarded, key: str) -> None:
    with guarded.client(key) as client, pytest.raises(tm.UnauthenticatedError):
        client.generate("x")
    with guarded.http(key) as http:
        for path in ("/v1/models", "/metrics", *CLOSED):
            assert http.get(path).status_code == 401, path
        assert http.post("/v1/completions", json={"prompt": "x"}).status_code == 401
        assert http.get("/healthz").text == "ok\n"
        assert http.get("/readyz").text == "ready\n"
    credentials = grpc.ssl_channel_credentials(guarded.authority.ca.read_bytes())
    with grpc.secure_channel(guarded.served.grpc, credentials) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_operator_routes_stay_closed_to_keys(guarded: Guarded) -> None:
    for tenant in ("carol", "ops"):
        with guarded.http(tenant) as http:
            for path in CLOSED:
                assert http.get(path).status_code == 404, path
                assert http.post(path, json={}).status_code == 404, path
            assert http.get("/metrics").status_code == (200 if tenant == "ops" else 403)


def test_plain_text_is_not_spoken(guarded: Guarded) -> None:
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{guarded.served.http}/healthz", timeout=30)
    with (
        tm.Client(guarded.served.grpc, timeout_s=30, max_attempts=1) as client,
        pytest.raises(tm.UnavailableError),
    ):
        client.tasks()


def test_openai_s_sdk(guarded: Guarded) -> None:
    with guarded.http("") as transport:
        client = openai.OpenAI(
            base_url=f"{guarded.url}/v1",
            api_key=guarded.keys["carol"],
            http_client=transport,
            max_retries=0,
        )
        assert client.completions.create(model="a", prompt="x", max_tokens=1).choices
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="wrong").models.list()
        with pytest.raises(openai.PermissionDeniedError):
            client.completions.create(model="a:0.5", prompt="x", max_tokens=1)
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="nosuch", prompt="x", max_tokens=1)


def test_a_tenant_comes_and_goes_while_it_is_served(guarded: Guarded) -> None:
    with guarded.client("ops") as ops:
        ops.create_tenant(tm.Tenant("dave", tasks=("a",)))
        made = ops.create_key("dave")
        with guarded.client(made.secret) as dave, guarded.http(made.secret) as http:
            assert [task.name for task in dave.tasks()] == ["a"]
            assert http.get("/v1/models").status_code == 200
            ops.update_tenant(tm.Tenant("dave", tasks=("c",)))
            assert [task.name for task in dave.tasks()] == ["c"]
            ops.revoke_key(made.key.id)
            with pytest.raises(tm.UnauthenticatedError):
                dave.tasks()
            assert http.get("/v1/models").status_code == 401
        ops.delete_tenant("dave")
        assert "dave" not in [tenant.name for tenant in ops.tenants()]


def test_the_command_line(guarded: Guarded) -> None:
    def ran(*arguments: str, key: str = "") -> subprocess.CompletedProcess[str]:
        flags = ("--server", guarded.served.grpc, "--ca", str(guarded.authority.ca))
        return subprocess.run(
            [*TASKMIX, *arguments, *flags, *(("--api-key", key) if key else ())],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )

    answered = ran("generate", "--mix", "a", "--max-tokens", "1", "x", key=guarded.keys["carol"])
    assert answered.returncode == 0, answered.stderr
    assert ran("tenants", "list", key=guarded.keys["ops"]).stdout.count("\n") == 5
    refused = ran("tenants", "list", key=guarded.keys["carol"])
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "not an admin" in refused.stderr
    assert "no valid API key" in ran("tasks", "list").stderr
    listed = ran("audit", "--limit", "1", key=guarded.keys["ops"])
    assert json.loads(listed.stdout)["verb"]


def test_the_state_directory_is_the_server_s(guarded: Guarded) -> None:
    state = guarded.served.log.parent
    refused = subprocess.run(
        [*TASKMIX, "keys", "create", "ops", "--state", str(state)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert refused.returncode == 1
    assert "a server runs on" in refused.stderr


def test_a_renewed_certificate(guarded: Guarded) -> None:
    """Last: later connections know the new authority only."""
    renewed = issue(guarded.authority.chain.parent, "second").ca
    with guarded.client("carol", ca=renewed) as client, guarded.http("carol", ca=renewed) as http:
        assert client.tasks()
        assert http.get("/v1/models").status_code == 200
    with guarded.http("carol") as stale, pytest.raises(httpx.ConnectError):
        stale.get("/v1/models")
    issue(guarded.authority.chain.parent, "first")
