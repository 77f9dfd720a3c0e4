"""Experiments in front of the engine: who answers at both edges, and what is kept of it."""

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from taskmix_client import (
    Arm,
    AsyncClient,
    DeadlineExceededError,
    ExperimentDesign,
    FailedPreconditionError,
    Guardrail,
    NotFoundError,
    Results,
)
from taskmix_composer.build import build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Forms
from taskmix_server.domain.generation import ExperimentTarget, GenerationRequest, SamplingOptions
from taskmix_server.runtime.experiments.guardrails import Guardrails
from taskmix_server.telemetry.requests import RequestRecord
from taskmix_server.tenancy.principal import DEFAULT
from tests.unit.composer.models import make_weights, save_model, tuned
from tests.unit.server.conftest import Parts
from tests.unit.server.secured import Secured, secured

SUBJECTS = [f"user-{number}" for number in range(20)]
TONE = ExperimentDesign(
    "tone",
    (Arm("control", "head", 0.5), Arm("mixed", "head:0.5+body:0.5", 0.5)),
    tenants=("ops",),
)


@pytest.fixture
async def served(parts: Parts) -> AsyncIterator[Secured]:
    async with secured(parts) as opened:
        yield opened


@pytest.fixture
async def ops(served: Secured) -> AsyncIterator[AsyncClient]:
    async with served.client("ops") as client:
        await client.create_experiment(TONE)
        await client.start_experiment("tone")
        yield client


async def ask_http(served: Secured, model: str, user: str = "", tenant: str = "ops") -> Any:
    headers = {"authorization": f"Bearer {served.keys[tenant]}"}
    body = {"model": model, "prompt": "x", "user": user}
    return await served.http.post("/v1/completions", json=body, headers=headers)


def counted(results: Results) -> dict[str, tuple[int, int, int]]:
    """By arm: subjects, requests, and those without a subject."""
    return {
        arm.arm: (arm.num_subjects, arm.num_requests, arm.num_without_subject)
        for arm in results.traffic
    }


async def test_both_edges_give_a_subject_the_same_arm(served: Secured, ops: AsyncClient) -> None:
    arms: dict[str, int] = {"control": 0, "mixed": 0}
    for subject in SUBJECTS:
        answer = await ops.generate("x", experiment="tone", subject=subject, max_tokens=2)
        response = await ask_http(served, "experiment:tone", subject)
        assert response.status_code == 200
        assert response.headers["x-taskmix-arm"] == answer.arm
        assert response.headers["x-taskmix-digest"] == answer.mix_digest
        label, arm = answer.arm.split("/")
        assert label == "tone@1"
        arms[arm] += 1
    assert min(arms.values()) > 0
    results = await ops.experiment_results("tone")
    assert counted(results) == {arm: (number, 2 * number, 0) for arm, number in arms.items()}


async def test_what_is_kept_of_an_answer(ops: AsyncClient, parts: Parts) -> None:
    answer = await ops.generate("x", experiment="tone", subject="ann", max_tokens=2)
    kept = {result.metric: result for result in (await ops.experiment_results("tone")).metrics}
    tokens, stops = (
        next(each.value for each in kept[metric].estimates if answer.arm.endswith(each.arm))
        for metric in ("tokens", "length_stops")
    )
    assert (tokens, stops) == (2.0, 1.0)
    (sample,) = (
        sample
        for metric in parts.registry.collect()
        for sample in metric.samples
        if sample.name == "taskmix_arm_requests_total"
    )
    assert (sample.labels, sample.value) == ({"arm": answer.arm, "outcome": "ok"}, 1.0)


async def test_without_a_subject_each_request_is_assigned(
    served: Secured, ops: AsyncClient
) -> None:
    answers = [
        await ops.generate("x", experiment="tone", subject="", max_tokens=1) for _ in range(20)
    ]
    assert {answer.arm for answer in answers} == {"tone@1/control", "tone@1/mixed"}
    assert (await ask_http(served, "experiment:tone")).status_code == 200
    counts = counted(await ops.experiment_results("tone"))
    assert sum(requests for _, requests, _ in counts.values()) == 21
    for subjects, requests, without in counts.values():
        assert (subjects, without) == (0, requests)


async def test_outside_the_ramp_the_control_answers_uncounted(ops: AsyncClient) -> None:
    await ops.ramp_experiment("tone", 0.0)
    answer = await ops.generate("x", experiment="tone", subject="ann", max_tokens=1)
    control = (await ops.experiment("tone")).design.arms[0]
    assert (answer.arm, answer.mix_digest) == ("tone@1/-", control.mix_digest)
    assert set(counted(await ops.experiment_results("tone")).values()) == {(0, 0, 0)}


async def test_a_stopped_arm_is_answered_by_the_control(ops: AsyncClient) -> None:
    await ops.stop_experiment("tone", arm="mixed")
    answers = [
        await ops.generate("x", experiment="tone", subject=subject, max_tokens=1)
        for subject in SUBJECTS
    ]
    assert {answer.arm for answer in answers} == {"tone@1/control", "tone@1/-"}
    assert len({answer.mix_digest for answer in answers}) == 1


async def test_it_does_not_exist_for_others(served: Secured, ops: AsyncClient) -> None:
    async with served.client("full") as other:
        with pytest.raises(NotFoundError, match="no experiment is named 'tone'") as hidden:
            await other.generate("x", experiment="tone", subject="ann", max_tokens=1)
        with pytest.raises(NotFoundError) as unknown:
            await other.generate("x", experiment="none", subject="ann", max_tokens=1)
    assert str(hidden.value).replace("tone", "none") == str(unknown.value)
    assert (await ask_http(served, "experiment:tone", "ann", "full")).status_code == 404


async def test_changed_content_is_refused(served: Secured, ops: AsyncClient, parts: Parts) -> None:
    weights = make_weights()
    sources = {name: parts.base.parent / name for name in ("body", "late")}
    changed = save_model(parts.base.parent / "changed", tuned(weights, seed=9))
    parts.bank.rename(parts.bank.with_name("before"))
    build_bank(parts.base, {**sources, "head": changed}, Forms(Scheme("dense")), parts.bank)
    await ops.unload_task("head")
    await ops.load_task("head")
    with pytest.raises(FailedPreconditionError, match=r"has changed since.*--new-version"):
        await ops.generate("x", experiment="tone", subject="ann", max_tokens=1)
    assert (await ask_http(served, "experiment:tone", "ann")).status_code == 409
    await ops.ramp_experiment("tone", 0.0)
    answer = await ops.generate("x", experiment="tone", subject="ann", max_tokens=1)
    assert answer.arm == "tone@1/-"
    await ops.create_experiment(TONE, is_new_version=True)
    await ops.start_experiment("tone")
    answer = await ops.generate("x", experiment="tone", subject="ann", max_tokens=1)
    assert answer.arm.startswith("tone@2/")


async def test_a_failure_counts_against_its_arm(ops: AsyncClient, parts: Parts) -> None:
    parts.engine.failure = RuntimeError("broken")
    record = RequestRecord("r")
    target = ExperimentTarget("tone", "ann")
    request = GenerationRequest("r", (1, 2), target, SamplingOptions(max_tokens=1))
    with pytest.raises(RuntimeError):
        async with parts.inference.observed(record, str):
            await parts.inference.generate(request, DEFAULT, record)
    kept = {result.metric: result for result in (await ops.experiment_results("tone")).metrics}
    assert [each.value for each in kept["error_rate"].estimates if each.count] == [1.0]


async def test_an_arm_that_cannot_be_made_ready_fails(ops: AsyncClient, parts: Parts) -> None:
    """A task of it is not there: its requests never reach the engine, and count all the same."""
    await ops.unload_task("body")
    for subject in SUBJECTS:
        with suppress(NotFoundError):
            await ops.generate("x", experiment="tone", subject=subject, max_tokens=1)
    kept = {result.metric: result for result in (await ops.experiment_results("tone")).metrics}
    control, mixed = kept["error_rate"].estimates
    assert (control.value, mixed.value) == (0.0, 1.0)
    assert control.count + mixed.count == len(SUBJECTS)


async def test_an_answer_that_is_too_late_fails(ops: AsyncClient, parts: Parts) -> None:
    """The caller's deadline passes while the arm answers, on and on."""
    with pytest.raises(DeadlineExceededError):
        await ops.generate("x", experiment="tone", subject="ann", max_tokens=10**6, timeout_s=0.2)
    await parts.engine.seen["end"].wait()
    kept = {result.metric: result for result in (await ops.experiment_results("tone")).metrics}
    assert [each.value for each in kept["error_rate"].estimates if each.count] == [1.0]


async def test_an_arm_that_fails_now_and_then_is_stopped(ops: AsyncClient, parts: Parts) -> None:
    """One answer in ten of an arm fails: it is stopped, and the control is not."""
    rule = Guardrail("error_rate", "at_most", 0.02)
    await ops.create_experiment(replace(TONE, guardrails=(rule,)), is_new_version=True)
    await ops.start_experiment("tone")
    design = await ops.experiment("tone")
    failing = design.design.arms[1].mix_digest
    for number in range(400):
        await answer_or_fail(parts, f"request {number}", failing, is_tenth=number % 10 == 0)
    service = parts.experiments
    guardrails = Guardrails(service.database, service.store, service.running)
    await guardrails.check()
    after = await ops.experiment("tone")
    assert ([halt.arm for halt in after.halted], after.status) == (["mixed"], "running")


async def answer_or_fail(parts: Parts, subject: str, failing: str, *, is_tenth: bool) -> None:
    """A request of a subject; one in ten fails if its arm's mix is the failing one."""
    running = parts.experiments.running
    arm = await running.assign("tone", subject, subject, DEFAULT)
    is_failing = is_tenth and arm.mix_digest == failing
    parts.engine.failure = RuntimeError("broken") if is_failing else None
    record = RequestRecord(subject)
    target = ExperimentTarget("tone", subject)
    request = GenerationRequest(subject, (1, 2), target, SamplingOptions(max_tokens=1))
    with suppress(RuntimeError):
        async with parts.inference.observed(record, str):
            await parts.inference.generate(request, DEFAULT, record)
