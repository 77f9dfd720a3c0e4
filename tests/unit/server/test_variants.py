"""Variants: leased while used, registered once, evicted when idle, never while in use."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from taskmix_composer.bank import Bank
from taskmix_composer.build import add_task, remove_task
from taskmix_composer.config import Scheme
from taskmix_composer.errors import InvalidMixError
from taskmix_composer.forms import Forms
from taskmix_composer.mix import Mix
from taskmix_server.domain.variant import Variant
from taskmix_server.errors import FailedPreconditionError, NotFoundError
from tests.support.planes import add_planes, random_masks
from tests.unit.composer.models import make_weights, save_model, tuned
from tests.unit.server.conftest import MAX_VARIANTS, Parts

MASKED = Mix.parse('{"terms": [{"task": "head", "masks": ["plane"]}]}')


async def lease_once(parts: Parts, mix: str) -> Variant:
    async with parts.variants.lease(Mix.parse(mix)) as variant:
        return variant


async def test_a_lease_holds_its_tasks(parts: Parts) -> None:
    async with parts.variants.lease(Mix.parse("head:0.5+body")) as variant:
        assert parts.tasks.num_references == 2
        assert parts.engine.variants == {variant.digest: variant}
        assert variant.bank_revision == parts.tasks.bank.revision
    assert parts.tasks.num_references == 0
    assert len(parts.variants) == 1


async def test_equal_mixes_are_registered_once(parts: Parts) -> None:
    leases = [lease_once(parts, mix) for mix in ("head+body", "body:1+head:1", "head+body")]
    variants = await asyncio.gather(*leases)
    assert len({variant.digest for variant in variants}) == 1
    assert parts.engine.log == [("register", "body:1.0+head:1.0")]


@pytest.mark.parametrize(
    ("mix", "changes_head"), [("base", False), ("body", False), ("body+head:0.1", True)]
)
async def test_what_changes_the_head(parts: Parts, mix: str, changes_head: bool) -> None:
    assert parts.variants.resolve(Mix.parse(mix)).changes_head is changes_head


async def test_refused_mixes_hold_nothing(parts: Parts) -> None:
    masked = '{"terms": [{"task": "head", "masks": ["plane"]}]}'
    for mix, error in (("late", NotFoundError), (masked, InvalidMixError)):
        with pytest.raises(error):
            await lease_once(parts, mix)
    assert parts.tasks.num_references == 0
    assert parts.engine.log == []


async def test_a_failing_request_is_counted_off(parts: Parts) -> None:
    with pytest.raises(ZeroDivisionError):
        async with parts.variants.lease(Mix.parse("head")):
            raise ZeroDivisionError
    assert parts.tasks.num_references == 0


async def test_the_least_recently_used_leaves(parts: Parts) -> None:
    for mix in ("head:1", "head:2", "head:3", "head:1", "head:4"):
        await lease_once(parts, mix)
    assert [str(variant.mix) for variant in parts.engine.variants.values()] == [
        "head:1.0",
        "head:3.0",
        "head:4.0",
    ]


async def test_variants_in_use_stay_over_the_limit(parts: Parts) -> None:
    mixes = [Mix.parse(f"head:{number}") for number in range(1, MAX_VARIANTS + 3)]
    async with AsyncExitStack() as held:
        for mix in mixes:
            await held.enter_async_context(parts.variants.lease(mix))
        assert len(parts.engine.variants) == len(mixes)
    await lease_once(parts, "body")
    assert len(parts.engine.variants) == MAX_VARIANTS


async def test_a_variant_leased_during_an_eviction_is_servable(parts: Parts) -> None:
    mixes = [f"head:{number}" for number in range(1, MAX_VARIANTS + 3)]
    async with AsyncExitStack() as held:
        for mix in mixes:
            await held.enter_async_context(parts.variants.lease(Mix.parse(mix)))
    parts.engine.blocked = {"forget"}
    evicting = asyncio.create_task(lease_once(parts, "body"))
    await parts.engine.seen["forget"].wait()
    leases = [asyncio.create_task(servable(parts, mix)) for mix in mixes]
    for _ in range(5):
        await asyncio.sleep(0)
    parts.engine.gate.set()
    assert all(await asyncio.gather(*leases))
    await evicting


async def servable(parts: Parts, mix: str) -> bool:
    async with parts.variants.lease(Mix.parse(mix)) as variant:
        for _ in range(20):
            await asyncio.sleep(0)
        return variant.digest in parts.engine.variants


async def test_content_takes_its_variants_along(parts: Parts) -> None:
    for mix in ("head", "body", "head+body"):
        await lease_once(parts, mix)
    await parts.tasks.unload("head")
    assert [str(variant.mix) for variant in parts.engine.variants.values()] == ["body:1.0"]
    assert len(parts.variants) == 1


async def test_unloading_under_a_lease(parts: Parts) -> None:
    async with parts.variants.lease(Mix.parse("head")) as variant:
        await parts.tasks.unload("head")
        assert variant.digest in parts.engine.variants
        with pytest.raises(NotFoundError):
            await lease_once(parts, "head")
    await parts.engine.seen["unload"].wait()
    assert parts.engine.variants == {}
    assert len(parts.variants) == 0


async def test_planes_are_part_of_what_a_variant_is(parts: Parts) -> None:
    opened = Bank.open(parts.bank)
    add_planes(parts.bank, ("head",), {"plane": random_masks(opened, 1)})
    await parts.tasks.load("late")  # rereads the bank
    async with parts.variants.lease(MASKED) as variant:
        assert variant.planes == {"plane": parts.tasks.bank.plane_digests["plane"]}
        assert parts.engine.variants[variant.digest].planes == variant.planes
    add_planes(parts.bank, ("head",), {"plane": random_masks(opened, 2)})
    await parts.tasks.load("late")
    again = parts.variants.resolve(MASKED)
    assert again.digest != variant.digest
    assert again.planes == {"plane": parts.tasks.bank.plane_digests["plane"]}


async def test_planes_over_content_that_the_bank_replaced_are_refused(
    parts: Parts, tmp_path: Path
) -> None:
    remove_task(parts.bank, "head")
    source = save_model(tmp_path / "other", tuned(make_weights(), seed=77))
    add_task(parts.bank, parts.base, "head", source, Forms(Scheme("dense")))
    add_planes(parts.bank, ("head",), {"plane": random_masks(Bank.open(parts.bank), 1)})
    await parts.tasks.load("late")
    parts.variants.resolve(Mix.parse("head"))
    with pytest.raises(FailedPreconditionError, match="taskmix tasks load head"):
        parts.variants.resolve(MASKED)
    await parts.tasks.load("head")
    assert parts.variants.resolve(MASKED).planes
