"""What a tenant may not use does not exist for it, on either edge."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from taskmix_client import (
    AlreadyExistsError,
    AsyncClient,
    NotFoundError,
    PermissionDeniedError,
    TaskMixError,
)
from taskmix_server.tenancy.tenant import Role, Tenant
from tests.unit.server.conftest import Parts
from tests.unit.server.secured import AUTHOR, Secured, secured

HIDDEN = ("body", "late")  # loaded, and on disk
UNKNOWN = "nosuch"

Ask = Callable[[AsyncClient, str], Awaitable[Any]]
BY_TASK: dict[str, Ask] = {
    "generate": lambda client, name: client.generate([1], mix=name),
    "in a mix": lambda client, name: client.generate([1], mix=f"head:0.5+{name}:0.5"),
    "twice": lambda client, name: client.generate([1], mix=f"{name}:0.5+{name}:0.25"),
    "stream": lambda client, name: anext(client.stream([1], mix=name)),
    "recipe": lambda client, name: client.generate(
        [1], mix={"method": "average", "tasks": ["head", name], "params": {}}
    ),
    "measured recipe": lambda client, name: client.generate(
        [1], mix={"method": "metagpt", "tasks": ["head", name], "params": {}}
    ),
    "load": lambda client, name: client.load_task(name),
    "unload": lambda client, name: client.unload_task(name),
    "register": lambda client, name: client.register_mix("full-new", name),
    "plane": lambda client, name: client.generate(
        [1], mix={"terms": [{"task": name, "coefficient": 1.0, "masks": ["ties.body"]}]}
    ),
}
BY_MIX: dict[str, Ask] = {
    "generate": lambda client, name: client.generate([1], mix_name=name),
    "delete": lambda client, name: client.delete_mix(name),
}


@pytest.fixture
async def served(parts: Parts) -> AsyncIterator[Secured]:
    async with secured(parts) as opened, opened.client("ops") as ops:
        await ops.register_mix("ops-mix", "head")  # a name of ours
        await ops.register_mix("full-leak", "head:0.5+body:0.5")  # a name of theirs, not all tasks
        await ops.register_mix("full-good", "head:0.5")
        yield opened


async def refusal(asked: Awaitable[Any], name: str) -> tuple[type[Exception], str]:
    """What a caller learns, with the name that it wrote taken out."""
    with pytest.raises(TaskMixError) as caught:
        await asked
    return type(caught.value), str(caught.value).replace(f"'{name}'", "NAME")


@pytest.mark.parametrize("ask", BY_TASK)
async def test_a_hidden_task_is_like_an_unknown_one(served: Secured, ask: str) -> None:
    async with served.client("full") as client:
        expected = await refusal(BY_TASK[ask](client, UNKNOWN), UNKNOWN)
        assert expected[0] is NotFoundError
        for name in HIDDEN:
            assert await refusal(BY_TASK[ask](client, name), name) == expected
    assert not any(name in expected[1] for name in HIDDEN)


@pytest.mark.parametrize("ask", BY_MIX)
async def test_a_hidden_mix_is_like_an_unknown_one(served: Secured, ask: str) -> None:
    async with served.client("full") as client:
        expected = await refusal(BY_MIX[ask](client, UNKNOWN), UNKNOWN)
        assert expected[0] is NotFoundError
        for name in ("ops-mix", "full-leak"):
            assert await refusal(BY_MIX[ask](client, name), name) == expected
    async with served.client("ops") as ops:
        assert [mix.name for mix in await ops.mixes()] == ["full-good", "full-leak", "ops-mix"]


@pytest.mark.parametrize("name", [*HIDDEN, "ops-mix", "full-leak"])
async def test_hidden_names_over_http(served: Secured, name: str) -> None:
    async def told(name: str, **body: Any) -> tuple[int, str]:
        response = await ask(served, "full", prompt="x", **body)
        return response.status_code, response.text.replace(f"'{name}'", "NAME")

    def term(task: str) -> dict[str, Any]:
        return {"terms": [{"task": task, "coefficient": 1.0}]}

    unknown = await told(UNKNOWN, model=UNKNOWN)
    assert unknown[0] == 404
    assert await told(name, model=name) == unknown
    assert await told(name, task_mix=term(name)) == unknown


async def test_lists_show_what_may_be_used(served: Secured) -> None:
    seen = {
        "full": (["head"], ["full-good"], ["tiny", "full-good", "head"]),
        "bare": (["body", "late"], [], ["tiny", "body"]),
        "ops": (
            ["body", "head", "late"],
            ["full-good", "full-leak", "ops-mix"],
            ["tiny", "full-good", "full-leak", "ops-mix", "body", "head"],
        ),
    }
    for tenant, (tasks, mixes, models) in seen.items():
        async with served.client(tenant) as client:
            assert [task.name for task in await client.tasks()] == tasks
            assert [mix.name for mix in await client.mixes()] == mixes
        headers = {"authorization": f"Bearer {served.keys[tenant]}"}
        listed = (await served.http.get("/v1/models", headers=headers)).json()
        assert [model["id"] for model in listed["data"]] == models


async def test_calls_at_the_same_time_stay_apart(served: Secured) -> None:
    async with served.client("full") as full, served.client("bare") as bare:
        listed = await asyncio.gather(*(client.tasks() for client in (full, bare) * 10))
    names = [[task.name for task in tasks] for tasks in listed]
    assert names == [["head"], ["body", "late"]] * 10


async def test_what_is_allowed_works(served: Secured) -> None:
    async with served.client("full") as client:
        for mix in ("head", "head:-0.5", "base", {"head": 0.25}):
            assert (await client.generate([1], mix=mix, max_tokens=1)).token_ids == (0,)
        assert (await client.generate([1], mix_name="full-good", max_tokens=1)).mix_digest
        assert (await client.register_mix("full-own", "head:2")).name == "full-own"
        await client.delete_mix("full-own")
        assert (await client.unload_task("head")).state == "on disk"
        assert (await client.load_task("head")).state == "resident"
    for model in ("head", "tiny", "full-good", "head:-0.5"):
        assert (await ask(served, "full", model=model)).status_code == 200


@pytest.mark.parametrize("mix", ["body:0.5", "body:-1", "body+late", "nosuch:0.5", "head:2"])
async def test_no_mixes_of_ones_own(served: Secured, mix: str) -> None:
    """Whatever its tasks are: the answer does not depend on what there is."""
    async with served.client("bare") as client:
        assert (await client.generate([1], mix="body", max_tokens=1)).token_ids == (0,)
        with pytest.raises(PermissionDeniedError, match="'bare' may not write mixes"):
            await client.generate([1], mix=mix)
    assert (await ask(served, "bare", model=mix)).status_code == 403
    term = {"task": "body", "coefficient": 0.5}
    assert (await ask(served, "bare", task_mix={"terms": [term]})).status_code == 403


NEGATIVE = {
    "plain": {"task": "head", "coefficient": -1.0},
    "a layer": {"task": "head", "layers": {"by_layer": {"0": -1.0}}},
    "a tensor": {"task": "head", "layers": {"by_tensor": {"model.norm.weight": -0.5}}},
    "unknown": {"task": "nosuch", "coefficient": -1.0},
}


@pytest.mark.parametrize("term", NEGATIVE)
async def test_no_negative_coefficients(parts: Parts, term: str) -> None:
    async with secured(parts) as served:
        tenant = Tenant("full", tasks=("*",), may_inline=True)
        parts.store.update(tenant, AUTHOR)
        async with served.client("full") as client:
            assert (await client.generate([1], mix="head:0.5", max_tokens=1)).token_ids == (0,)
            with pytest.raises(PermissionDeniedError, match="negative"):
                await client.generate([1], mix={"terms": [NEGATIVE[term]]})


async def test_a_name_must_be_ones_own(served: Secured) -> None:
    async with served.client("full") as client:
        messages = {
            (await refusal(client.register_mix(name, "head"), name))
            for name in ("ops-mix", "ops-new")
        }
        assert len(messages) == 1
        assert messages.pop()[0] is PermissionDeniedError
        with pytest.raises(AlreadyExistsError) as taken:
            await client.register_mix("full-leak", "head")
        assert "body" not in str(taken.value)


async def test_keys_and_values_are_salted_by_tenant(served: Secured, parts: Parts) -> None:
    for tenant in ("full", "ops", "full"):
        async with served.client(tenant) as client:
            await client.generate([1], mix="head", max_tokens=1)
    first, other, again = parts.engine.salts
    assert first == again != other
    for salt in (first, other):
        assert salt is not None
        assert 0 < len(salt) <= 128
        assert not set("@/\\\0") & set(salt)
    for path in ("/v1/completions", "/v1/chat/completions"):
        body = {"model": "head", "cache_salt": other}
        headers = {"authorization": f"Bearer {served.keys['full']}"}
        answer = await served.http.post(path, json=body, headers=headers)
        assert answer.json()["cache_salt"] == first


async def test_a_tenant_of_an_old_name_is_another(parts: Parts) -> None:
    salts = []
    parts.store.create(Tenant("ops", Role.ADMIN), AUTHOR)
    for _ in range(2):
        parts.store.create(Tenant("bob"), AUTHOR)
        key, _ = parts.store.create_key("bob", None, AUTHOR)
        found = parts.store.find_key(key.id)
        assert found is not None
        salts.append(found[2].id)
        parts.store.delete("bob", AUTHOR)
        assert parts.store.find_key(key.id) is None
    assert salts[0] != salts[1]


async def test_changes_are_written_down(served: Secured, parts: Parts) -> None:
    async with served.client("full") as client:
        await client.unload_task("head")
        await client.load_task("head")
        with pytest.raises(NotFoundError):
            await client.load_task("nosuch")
    loaded, unloaded = parts.audit.latest(2)
    assert [(record.author.tenant, record.change.verb) for record in (unloaded, loaded)] == [
        ("full", "tasks.unload"),
        ("full", "tasks.load"),
    ]
    key_id = served.keys["full"].split("_")[1]
    assert loaded.author.key_id == key_id
    assert len(loaded.author.request_id) == 32
    before, after = loaded.change.before, loaded.change.after
    assert before is not None
    assert after is not None
    assert (before["state"], after["state"]) == ("on disk", "resident")
    assert after["digest"] == parts.tasks.bank.entry_digests["head"]


async def ask(served: Secured, tenant: str, **body: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {served.keys[tenant]}"}
    return await served.http.post("/v1/completions", json=body, headers=headers)
