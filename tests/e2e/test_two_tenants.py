"""docs/operations.md as an operator follows it: two tenants with different rights and limits on one
server, over TLS and through both edges."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

import taskmix_client as tm
from tests.support.certificates import issue
from tests.support.documented import Command, commands
from tests.support.guarded import Guarded
from tests.support.served import serving, taskmix
from tests.support.tiny import TinyModel, make_base, make_finetune

TASKS = ("search-web", "search-code", "support", "faq-billing")
SEEN = {"search": ["search-code", "search-web"], "support": ["faq-billing", "support"]}
PROMPT = "a prompt that both tenants send, and that fills two blocks of thirty-two tokens"
BLOCK = 32
NUM_AT_ONCE = 20
MAX_OUTPUT_TOKENS = 256


@dataclass(frozen=True)
class Deployed:
    """A server made by the page's commands, and what those printed that were typed at it."""

    guarded: Guarded
    printed: dict[Command, str]

    def typed(self, *command: str) -> str:
        """Run a command against the server, in the environment that the page exports."""
        settings = {
            "TASKMIX_SERVER": self.guarded.served.grpc,
            "TASKMIX_API_KEY": self.guarded.keys["ops"],
            "TASKMIX_CA": str(self.guarded.authority.ca),
        }
        return typed(command, *(f"{name}={value}" for name, value in settings.items()))

    @contextmanager
    def sdk(self, tenant: str, max_retries: int = 5) -> Iterator[openai.OpenAI]:
        """OpenAI's client with a tenant's key, or with the key that is given instead."""
        with self.guarded.http("") as transport:
            yield openai.OpenAI(
                base_url=f"{self.guarded.url}/v1",
                api_key=self.guarded.keys.get(tenant, tenant),
                http_client=transport,
                max_retries=max_retries,
            )


def typed(command: Command, *settings: str) -> str:
    """Run a command that ends by itself; what it prints."""
    program, *arguments = command
    executable = Path(sys.executable).with_name(program)
    ran = subprocess.run(
        ["env", *settings, executable, *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, f"{command}: {ran.stderr}"
    return ran.stdout


def make_bank(directory: Path) -> tuple[Path, Path]:
    """A base, and a bank of TASKS."""
    base = make_base(directory / "base", TinyModel())
    tuned = {name: make_finetune(base, directory / name, seed) for seed, name in enumerate(TASKS)}
    tasks = [f"--task={name}={path}" for name, path in tuned.items()]
    taskmix("bank", "build", "--base", base, *tasks, "--out", directory / "bank")
    return base, directory / "bank"


def made_keys(printed: dict[Command, str]) -> dict[str, str]:
    """The keys that `taskmix keys create TENANT` printed."""
    return {
        command[3]: output.strip()
        for command, output in printed.items()
        if command[1:3] == ("keys", "create")
    }


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    directory = tmp_path_factory.mktemp("deployed")
    base, bank = make_bank(directory)
    state, authority = directory / "state", issue(directory, "ca")
    stands_for = {
        "BASE": str(base),
        "bank": str(bank),
        "/var/lib/taskmix": str(state),
        "/etc/taskmix/chain.pem": str(authority.chain),
        "/etc/taskmix/key.pem": str(authority.key),
        "0.0.0.0": "127.0.0.1",  # keeps the test's server to this machine
    }
    (*before, serve), (export, *later) = commands("operations.md", "Deploy", stands_for)
    assert [word.partition("=")[0] for word in export] == [
        *("export", "TASKMIX_SERVER", "TASKMIX_API_KEY", "TASKMIX_CA"),
    ]
    keys = made_keys({command: typed(command) for command in before})
    assert serve[:2] == ("taskmix", "serve")
    with serving(base, bank, state, *serve[2:]) as served:
        running = Deployed(Guarded(served, authority, keys), {})
        running.printed.update({command: running.typed(*command) for command in later})
        keys.update(made_keys(running.printed))
        yield running


def complete(sdk: openai.OpenAI, model: str, **options: Any) -> Any:
    return sdk.completions.create(model=model, prompt=PROMPT, **{"max_tokens": 1, **options})


@pytest.mark.parametrize("tenant", SEEN)
def test_each_sees_and_uses_its_own(deployed: Deployed, tenant: str) -> None:
    with deployed.guarded.client(tenant) as client, deployed.sdk(tenant) as sdk:
        assert [task.name for task in client.tasks()] == SEEN[tenant]
        assert [model.id for model in sdk.models.list()] == ["base", *SEEN[tenant]]
        for task in SEEN[tenant]:
            answer = client.generate(PROMPT, mix=task, max_tokens=8, temperature=0.0)
            streamed = complete(sdk, task, max_tokens=8, temperature=0.0, stream=True)
            assert "".join(part.choices[0].text for part in streamed) == answer.text


@pytest.mark.parametrize(("tenant", "other"), [("search", "support"), ("support", "search-web")])
def test_the_other_s_tasks_are_unknown(deployed: Deployed, tenant: str, other: str) -> None:
    with deployed.guarded.client(tenant) as client, deployed.sdk(tenant) as sdk:
        messages = set()
        for model in (other, "nosuch"):
            with pytest.raises(tm.NotFoundError) as over_grpc:
                client.generate(PROMPT, mix=model)
            with pytest.raises(openai.NotFoundError) as over_http:
                complete(sdk, model)
            texts = (str(over_grpc.value), str(over_http.value.body["message"]))
            messages |= {text.replace(f"'{model}'", "TASK") for text in texts}
        assert len(messages) == 1


def test_mixes_are_for_search_alone(deployed: Deployed) -> None:
    mixes = {"search": "search-web:0.5+search-code:0.5", "support": "support:0.5+faq-billing:0.5"}
    with deployed.guarded.client("search") as client, deployed.sdk("search") as sdk:
        assert client.generate(PROMPT, mix=mixes["search"], max_tokens=1).token_ids
        assert complete(sdk, mixes["search"]).choices
        with pytest.raises(tm.PermissionDeniedError):
            client.generate(PROMPT, mix="search-web:-1")
        with pytest.raises(tm.PermissionDeniedError):
            client.register_mix("search-prod", "search-web")
    with deployed.guarded.client("support") as client, deployed.sdk("support") as sdk:
        with pytest.raises(tm.PermissionDeniedError):
            client.generate(PROMPT, mix=mixes["support"])
        with pytest.raises(openai.PermissionDeniedError):
            complete(sdk, mixes["support"])


def test_keys_and_values_are_apart(deployed: Deployed) -> None:
    def cached(tenant: str) -> int:
        with deployed.guarded.client(tenant) as client:
            return client.generate(f"apart: {PROMPT}", max_tokens=1).usage.cached_tokens

    assert cached("search") == 0
    assert cached("search") >= BLOCK
    assert cached("support") == 0
    assert cached("support") >= BLOCK


def test_answers_of_support_are_short(deployed: Deployed) -> None:
    too_many = MAX_OUTPUT_TOKENS + 1
    with deployed.guarded.client("support") as client, deployed.sdk("support") as sdk:
        with pytest.raises(tm.InvalidArgumentError, match="max_output_tokens"):
            client.generate(PROMPT, mix="support", max_tokens=too_many)
        with pytest.raises(openai.BadRequestError, match="max_output_tokens"):
            complete(sdk, "support", max_tokens=too_many)
    with deployed.guarded.client("search") as client:
        answer = client.generate(PROMPT, mix="search-web", max_tokens=too_many, ignore_eos=True)
    assert len(answer.token_ids) == too_many


def outcomes(ask: Callable[[int], Any]) -> list[Any]:
    """What so many calls at once give or raise."""
    with ThreadPoolExecutor(NUM_AT_ONCE) as threads:
        asked = [threads.submit(ask, number) for number in range(NUM_AT_ONCE)]
        return [one.exception() or one.result() for one in asked]


def test_support_asks_too_often(deployed: Deployed) -> None:
    """It is told when to come back, through either edge; search is not held up."""
    guarded = deployed.guarded
    with (
        tm.Client(
            guarded.served.grpc, guarded.keys["support"], ca=guarded.authority.ca, max_attempts=1
        ) as client,
        deployed.sdk("support", max_retries=0) as sdk,
        guarded.client("search") as search,
    ):
        over_grpc = outcomes(lambda _: client.generate("x", mix="support", max_tokens=1))
        over_http = outcomes(lambda _: complete(sdk, "support"))
        others = outcomes(lambda _: search.generate("x", mix="search-web", max_tokens=1))
    refused = [one for one in over_grpc if isinstance(one, tm.ResourceExhaustedError)]
    assert refused
    assert all(one.retry_after_s is not None and 0 < one.retry_after_s <= 1 for one in refused)
    assert any(isinstance(one, tm.Answer) for one in over_grpc)
    limited = [one for one in over_http if isinstance(one, openai.RateLimitError)]
    assert {one.response.headers["retry-after"] for one in limited} == {"1"}
    assert all(isinstance(one, tm.Answer) for one in others)


def test_what_the_operator_sees(deployed: Deployed) -> None:
    printed = {command[1]: output for command, output in deployed.printed.items()}
    assert "faq-*" in printed["tenants"]
    changes = [json.loads(line) for line in printed["audit"].splitlines()]
    assert [change["verb"] for change in changes] == [
        *("keys.create", "tenants.update"),
        *("keys.create", "keys.create"),
        *("tenants.create", "tenants.create", "tenants.create"),
    ]
    with deployed.guarded.http("ops") as http:
        text = http.get("/metrics").text
    for tenant in SEEN:
        for edge in ("grpc", "http"):
            assert (
                f'taskmix_requests_total{{edge="{edge}",outcome="ok",reason="",tenant="{tenant}"}}'
                in text
            )


def test_a_key_is_changed_without_an_interruption(deployed: Deployed) -> None:
    old = deployed.guarded.keys["search"]
    new = deployed.typed("taskmix", "keys", "create", "search").strip()
    deployed.typed("taskmix", "keys", "revoke", old.split("_")[1])
    with deployed.guarded.client(new) as client, deployed.sdk(new) as sdk:
        assert client.generate(PROMPT, mix="search-web", max_tokens=1).token_ids
        assert complete(sdk, "search-web").choices
    with deployed.guarded.client(old) as client, deployed.sdk(old) as sdk:
        with pytest.raises(tm.UnauthenticatedError):
            client.tasks()
        with pytest.raises(openai.AuthenticationError):
            sdk.models.list()
