"""Tasks: loading, unloading, replacing, and the requests that hold them meanwhile."""

import asyncio
import shutil
from pathlib import Path

import pytest

from taskmix_composer.build import add_task, build_bank, remove_task
from taskmix_composer.config import Scheme
from taskmix_composer.errors import BaseMismatchError, UnknownTaskError
from taskmix_composer.forms import Forms
from taskmix_composer.mix import Mix
from taskmix_server.errors import FailedPreconditionError, NotFoundError
from taskmix_server.runtime.statuses import TaskState
from tests.unit.composer.models import make_weights, save_model, tuned
from tests.unit.server.conftest import Parts

HEAD = Mix.parse("head")


async def settle() -> None:
    """Let every task of the loop that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def replace_task(parts: Parts, name: str, directory: Path) -> None:
    """Put other content under a name in the bank directory."""
    remove_task(parts.bank, name)
    source = save_model(directory, tuned(make_weights(), seed=77))
    add_task(parts.bank, parts.base, name, source, Forms(Scheme("dense")))


async def test_loading_makes_servable(parts: Parts) -> None:
    late = Mix.parse("late")
    with pytest.raises(NotFoundError, match="'late' is not served; loaded tasks are: body, head"):
        parts.tasks.digests(late)
    status = await parts.tasks.load("late")
    assert status.state is TaskState.RESIDENT
    assert status.resident_bytes == 100
    assert parts.tasks.digests(late) == {"late": status.digest}
    assert parts.tasks.resident_bytes == 300


async def test_loading_again_asks_the_engine_once(parts: Parts) -> None:
    await asyncio.gather(parts.tasks.load("late"), parts.tasks.load("late"))
    assert parts.engine.log == [("load", "late")]


async def test_a_task_says_that_it_is_being_loaded(parts: Parts) -> None:
    parts.engine.blocked = {"load"}
    parts.engine.seen.clear()
    loading = asyncio.create_task(parts.tasks.load("late"))
    await parts.engine.seen["load"].wait()
    assert parts.tasks.status("late").state is TaskState.LOADING
    parts.engine.gate.set()
    assert (await loading).state is TaskState.RESIDENT


async def test_a_failed_load_changes_nothing(parts: Parts) -> None:
    parts.engine.failure = FailedPreconditionError("changed meanwhile")
    with pytest.raises(FailedPreconditionError):
        await parts.tasks.load("late")
    assert parts.tasks.status("late").state is TaskState.ON_DISK
    assert parts.tasks.resident_bytes == 200


async def test_unknown_tasks(parts: Parts) -> None:
    with pytest.raises(UnknownTaskError):
        await parts.tasks.load("nothing")
    with pytest.raises(UnknownTaskError):
        await parts.tasks.unload("nothing")
    assert (await parts.tasks.unload("late")).state is TaskState.ON_DISK


async def test_unloading_an_idle_task(parts: Parts) -> None:
    digest = parts.tasks.status("head").digest
    status = await parts.tasks.unload("head")
    assert (status.state, status.resident_bytes) == (TaskState.ON_DISK, 0)
    assert parts.engine.log == [("unload", digest)]
    with pytest.raises(NotFoundError):
        parts.tasks.digests(HEAD)


async def test_unloading_waits_for_the_last_request(parts: Parts) -> None:
    digest = parts.tasks.status("head").digest
    parts.tasks.hold([digest])
    parts.tasks.hold([digest])
    status = await parts.tasks.unload("head")
    assert (status.state, status.references) == (TaskState.UNLOADING, 2)
    parts.tasks.release([digest])
    await settle()
    assert parts.engine.log == []
    parts.tasks.release([digest])
    await settle()
    assert parts.engine.log == [("unload", digest)]
    assert parts.tasks.status("head").state is TaskState.ON_DISK
    assert parts.tasks.num_references == 0


async def test_loading_again_while_it_is_held(parts: Parts) -> None:
    digest = parts.tasks.status("head").digest
    parts.tasks.hold([digest])
    await parts.tasks.unload("head")
    status = await parts.tasks.load("head")
    assert (status.state, status.references) == (TaskState.RESIDENT, 1)
    parts.tasks.release([digest])
    await settle()
    assert digest in parts.engine.tasks
    assert parts.tasks.digests(HEAD) == {"head": digest}


async def test_replaced_content_serves_new_requests_only(parts: Parts, tmp_path: Path) -> None:
    old = parts.tasks.status("head").digest
    revision = parts.tasks.bank.revision
    parts.tasks.hold([old])
    replace_task(parts, "head", tmp_path / "other")
    assert parts.tasks.digests(HEAD) == {"head": old}
    new = (await parts.tasks.load("head")).digest
    assert new != old
    assert parts.tasks.digests(HEAD) == {"head": new}
    assert parts.tasks.bank.revision != revision
    assert {old, new} < parts.engine.tasks
    parts.tasks.release([old])
    await settle()
    assert old not in parts.engine.tasks


async def test_equal_content_under_two_names_is_held_once(parts: Parts, tmp_path: Path) -> None:
    remove_task(parts.bank, "late")
    add_task(parts.bank, parts.base, "late", tmp_path / "body", Forms(Scheme("dense")))
    await parts.tasks.load("late")
    digests = parts.tasks.digests(Mix.parse("late+body"))
    assert len(set(digests.values())) == 1
    await parts.tasks.unload("body")
    assert digests["late"] in parts.engine.tasks
    await parts.tasks.unload("late")
    assert digests["late"] not in parts.engine.tasks


async def test_a_loaded_task_that_left_the_bank_is_listed(parts: Parts) -> None:
    remove_task(parts.bank, "head")
    await parts.tasks.load("late")
    assert [status.name for status in parts.tasks.statuses()] == ["body", "head", "late"]
    assert parts.tasks.status("head").state is TaskState.RESIDENT


async def test_a_load_whose_caller_left_is_finished(parts: Parts) -> None:
    parts.engine.blocked = {"load"}
    parts.engine.seen.clear()
    loading = asyncio.create_task(parts.tasks.load("late"))
    await parts.engine.seen["load"].wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    parts.engine.gate.set()
    await settle()
    assert parts.tasks.status("late").state is TaskState.RESIDENT
    assert len(parts.engine.tasks) == 3


async def test_an_unload_whose_caller_left_is_finished(parts: Parts) -> None:
    parts.engine.blocked = {"unload"}
    unloading = asyncio.create_task(parts.tasks.unload("head"))
    await parts.engine.seen["unload"].wait()
    unloading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unloading
    parts.engine.gate.set()
    await settle()
    assert parts.tasks.status("head").state is TaskState.ON_DISK
    assert (len(parts.engine.tasks), parts.tasks.resident_bytes) == (1, 100)


async def test_a_bank_of_another_base_is_refused(parts: Parts, tmp_path: Path) -> None:
    shutil.rmtree(parts.bank)
    weights = make_weights(seed=50)
    base = save_model(tmp_path / "other", weights)
    late = save_model(tmp_path / "other-late", tuned(weights, seed=51))
    build_bank(base, {"late": late}, Forms(Scheme("dense")), parts.bank)
    with pytest.raises(BaseMismatchError, match="another base"):
        await parts.tasks.load("late")
    assert parts.tasks.digests(Mix.parse("head+body"))
    assert parts.engine.log == []


async def test_a_loaded_task_outlives_its_removal_from_the_bank(parts: Parts) -> None:
    remove_task(parts.bank, "head")
    await parts.tasks.load("late")
    status = parts.tasks.status("head")
    assert (status.state, status.scheme) == (TaskState.RESIDENT, "dense")
    async with parts.variants.lease(HEAD) as variant:
        assert variant.changes_head


async def test_equal_content_under_another_name_is_not_that_names(parts: Parts) -> None:
    source = parts.base.parent / "body"
    add_task(parts.bank, parts.base, "twin", source, Forms(Scheme("dense")))
    await parts.tasks.load("late")  # rereads the bank
    assert parts.tasks.status("twin").digest == parts.tasks.status("body").digest
    assert parts.tasks.status("twin").state is TaskState.ON_DISK
    assert parts.tasks.status("twin").resident_bytes == 0
