"""Experiments over gRPC, for callers with different rights."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from taskmix_client import (
    AlreadyExistsError,
    Arm,
    AsyncClient,
    ExperimentDesign,
    FailedPreconditionError,
    Guardrail,
    InvalidArgumentError,
    NotFoundError,
    Outcome,
    PermissionDeniedError,
    Recorded,
    ShadowArm,
    TaskMixError,
)
from taskmix_composer.build import build_bank
from taskmix_composer.config import Scheme
from taskmix_composer.forms import Forms
from taskmix_server.telemetry.requests import RequestRecord
from taskmix_server.tenancy.principal import DEFAULT, Principal
from taskmix_server.tenancy.tenant import Tenant
from tests.unit.composer.models import EMBEDDING, make_weights, save_model, tuned
from tests.unit.server.conftest import Parts
from tests.unit.server.secured import Secured, secured

TONE = ExperimentDesign(
    "tone",
    (Arm("control", "head", 0.5), Arm("mixed", {"head": 0.5, "body": 0.5}, 0.5)),
)
OWN = ExperimentDesign("full-tone", (Arm("control", "head", 0.5), Arm("half", "head:0.5", 0.5)))


@pytest.fixture
async def served(parts: Parts) -> AsyncIterator[Secured]:
    async with secured(parts) as opened:
        yield opened


@pytest.fixture
async def ops(served: Secured) -> AsyncIterator[AsyncClient]:
    async with served.client("ops") as client:
        yield client


async def answered(parts: Parts, name: str, subject: str, principal: Principal = DEFAULT) -> None:
    """Let a subject meet an experiment."""
    running = parts.experiments.running
    assigned = await running.assign(name, subject, f"request of {subject}", principal)
    running.observe(assigned, RequestRecord("r", started_s=1.0, ended_s=2.0, finish_reason="stop"))


async def test_from_a_draft_to_a_decision(ops: AsyncClient, parts: Parts) -> None:
    await ops.register_mix("prod", "head")
    created = await ops.create_experiment(TONE, ramp_percent=50.0)
    assert (created.status, created.version, created.ramp_percent) == ("draft", 1, 50.0)
    assert [arm.share for arm in created.design.arms] == [0.5, 0.5]
    assert created.design.arms[0].mix_digest == (await ops.mixes())[0].mix_digest
    assert await ops.create_experiment(TONE, ramp_percent=50.0) == created
    assert (await ops.start_experiment("tone")).status == "running"
    assert (await ops.ramp_experiment("tone", 100.0)).ramp_percent == 100.0
    for subject in ("ann", "bob", "cid"):
        await answered(parts, "tone", subject)
    outcomes = [Outcome(metric="rating", value=4.0, subject="ann", key="k")]
    assert await ops.record_outcomes("tone", outcomes) == Recorded(1, 0)
    assert await ops.record_outcomes("tone", outcomes) == Recorded(0, 1)
    results = await ops.experiment_results("tone", ratios=("rating/requests",), alpha=0.1)
    assert sum(traffic.num_subjects for traffic in results.traffic) == 3
    assert (results.alpha, results.metrics[-1].metric) == (0.1, "rating/requests")
    assert (await ops.stop_experiment("tone")).why == "ops stopped it"
    promoted = await ops.promote_experiment("tone", "mixed", "prod")
    assert promoted.promotion is not None
    assert (promoted.status, promoted.promotion.mix_name) == ("promoted", "prod")
    (prod,) = await ops.mixes()
    assert prod.mix == promoted.design.arms[1].mix
    assert (await ops.rollback_experiment("tone")).status == "stopped"
    (prod,) = await ops.mixes()
    assert prod.mix == promoted.promotion.before
    assert await ops.experiments() == (await ops.experiment("tone"),)
    verbs = [record.verb for record in await ops.audit(8)]
    assert verbs[:2] == ["experiments.rollback", "experiments.promote"]


async def test_an_arm_that_was_stopped_does_not_win(ops: AsyncClient) -> None:
    await ops.create_experiment(TONE)
    await ops.start_experiment("tone")
    halted = await ops.stop_experiment("tone", arm="mixed", why="too slow")
    assert [(halt.arm, halt.why) for halt in halted.halted] == [("mixed", "too slow")]
    with pytest.raises(FailedPreconditionError, match=r"'mixed' of .* was stopped: too slow"):
        await ops.promote_experiment("tone", "mixed", "prod")
    assert (await ops.promote_experiment("tone", "control", "prod")).status == "promoted"


async def test_every_field_arrives(ops: AsyncClient) -> None:
    await ops.register_mix("next", "body")
    design = ExperimentDesign(
        "tone",
        (Arm("control", mix_name="next", share=0.25), TONE.arms[1], Arm("base", "base", 0.25)),
        salt="pepper",
        shadows=(ShadowArm("shadow", "body:0.5", 0.125),),
        tenants=("full", "team-*"),
        overrides={"tester": "mixed"},
        guardrails=(
            Guardrail("latency_s", "at_most", 1.5, is_relative=True, quantile=0.95, alpha=0.02),
            Guardrail("rating", "at_least", 0.5, alpha=0.01),
        ),
    )
    made = (await ops.create_experiment(design)).design
    assert made.arms[0].mix == (await ops.mixes())[0].mix
    assert made.shadows[0].rate == 0.125
    fields = ("name", "salt", "tenants", "overrides", "guardrails")
    for field in fields:
        assert getattr(made, field) == getattr(design, field), field
    assert (await ops.experiment("tone")).design == made


async def test_a_new_version(ops: AsyncClient) -> None:
    await ops.create_experiment(TONE)
    await ops.start_experiment("tone")
    other = replace(TONE, arms=(replace(TONE.arms[0], share=0.9), replace(TONE.arms[1], share=0.1)))
    with pytest.raises(AlreadyExistsError, match="--new-version"):
        await ops.create_experiment(other)
    assert (await ops.create_experiment(other, is_new_version=True)).version == 2
    await ops.start_experiment("tone")
    assert (await ops.experiment("tone", 1)).status == "stopped"
    assert (await ops.experiment("tone")).status == "running"


BAD: dict[str, tuple[ExperimentDesign, type[TaskMixError], str]] = {
    "shares": (replace(TONE, arms=TONE.arms[:1]), InvalidArgumentError, "sum to 0.5"),
    "no mix": (
        replace(TONE, arms=(Arm("a", "nosuch", 1.0),)),
        NotFoundError,
        "nosuch",
    ),
    "not loaded": (replace(TONE, arms=(Arm("a", "late", 1.0),)), NotFoundError, "late"),
    "no named mix": (
        replace(TONE, arms=(Arm("a", mix_name="nosuch", share=1.0),)),
        NotFoundError,
        "nosuch",
    ),
    "malformed": (replace(TONE, arms=(Arm("a", "head:", 1.0),)), InvalidArgumentError, "number"),
    "nan": (replace(TONE, arms=(Arm("a", "head", float("nan")),)), InvalidArgumentError, "share"),
    "name": (replace(TONE, name="No Name"), InvalidArgumentError, "cannot name an experiment"),
    "guardrail": (
        replace(TONE, guardrails=(Guardrail("rating", "at_least", float("nan")),)),
        InvalidArgumentError,
        "bound",
    ),
}


@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_design_leaves_nothing(ops: AsyncClient, kind: str) -> None:
    design, error, message = BAD[kind]
    with pytest.raises(error, match=message):
        await ops.create_experiment(design)
    assert await ops.experiments() == ()


async def test_bad_outcomes_leave_nothing(ops: AsyncClient, parts: Parts) -> None:
    await ops.create_experiment(TONE)
    await ops.start_experiment("tone")
    await answered(parts, "tone", "ann")
    good = Outcome(metric="rating", value=1.0, subject="ann")
    for bad, error in (
        (replace(good, key="k", value=float("nan")), InvalidArgumentError),
        (replace(good, key="k", subject="nobody"), NotFoundError),
        (replace(good, key="", value=1.0), InvalidArgumentError),
    ):
        with pytest.raises(error):
            await ops.record_outcomes("tone", [good, bad])
    results = await ops.experiment_results("tone")
    assert "rating" not in {result.metric for result in results.metrics}


async def test_mixes_are_pinned(ops: AsyncClient, parts: Parts, tmp_path: Any) -> None:
    """A task that has changed is not what the experiment was made of."""
    await ops.create_experiment(TONE)
    weights = make_weights()
    changed = {**tuned(weights, seed=9), EMBEDDING: weights[EMBEDDING]}
    body = save_model(tmp_path / "changed", changed)
    await ops.unload_task("body")
    again = tmp_path / "again"
    build_bank(parts.base, {"body": body}, Forms(Scheme("dense")), again)
    parts.bank.rename(tmp_path / "old")
    again.rename(parts.bank)
    await ops.load_task("body")
    with pytest.raises(FailedPreconditionError, match=r"'mixed' is .* a task of it has changed"):
        await ops.start_experiment("tone")
    await ops.create_experiment(TONE, is_new_version=True)
    assert (await ops.start_experiment("tone")).version == 1


async def test_a_tenant_has_experiments_of_its_own(served: Secured, ops: AsyncClient) -> None:
    async with served.client("full") as full:
        made = await full.create_experiment(OWN)
        assert made.design.tenants == ("full",)
        assert (await full.start_experiment("full-tone")).status == "running"
        assert await full.experiments() == (await ops.experiment("full-tone"),)
        assert (await full.promote_experiment("full-tone", "half", "full-best")).promotion
        assert [mix.name for mix in await full.mixes()] == ["full-best"]
        await full.rollback_experiment("full-tone")
        for refused in (
            replace(OWN, name="tone"),  # a name of others
            replace(OWN, name="full-2", tenants=("*",)),
            replace(OWN, name="full-2", arms=(Arm("a", "head:0.5+body:0.5", 1.0),)),
        ):
            with pytest.raises((PermissionDeniedError, NotFoundError)):
                await full.create_experiment(refused)
    assert [item.name for item in await ops.experiments()] == ["full-tone"]


BY_NAME: dict[str, Callable[[AsyncClient, str], Awaitable[Any]]] = {
    "get": lambda client, name: client.experiment(name),
    "start": lambda client, name: client.start_experiment(name),
    "ramp": lambda client, name: client.ramp_experiment(name, 1.0),
    "stop": lambda client, name: client.stop_experiment(name),
    "promote": lambda client, name: client.promote_experiment(name, "control", "full-best"),
    "rollback": lambda client, name: client.rollback_experiment(name),
    "results": lambda client, name: client.experiment_results(name),
    "record": lambda client, name: client.record_outcomes(
        name, [Outcome(metric="rating", value=1.0, subject="ann", key="k")]
    ),
}


@pytest.mark.parametrize("ask", BY_NAME)
async def test_a_hidden_experiment_is_like_an_unknown_one(
    served: Secured, ops: AsyncClient, ask: str
) -> None:
    await ops.create_experiment(replace(TONE, name="others", tenants=("bare",)))
    await ops.create_experiment(replace(TONE, name="tasks"))  # for all, but not all of its tasks
    for name in ("others", "tasks"):
        await ops.start_experiment(name)
    messages = set()
    async with served.client("full") as full:
        for name in ("others", "tasks", "nosuch"):
            with pytest.raises(NotFoundError) as caught:
                await BY_NAME[ask](full, name)
            messages.add(str(caught.value).replace(f"'{name}'", "NAME"))
        assert await full.experiments() == ()
    assert len(messages) == 1


@pytest.mark.parametrize("ask", ["start", "ramp", "stop", "promote"])
async def test_what_is_for_others_too_is_not_changed(
    served: Secured, ops: AsyncClient, ask: str
) -> None:
    await ops.create_experiment(replace(OWN, name="shared", tenants=("full", "bare")))
    if ask != "start":
        await ops.start_experiment("shared")
    before = await ops.experiment("shared")
    async with served.client("full") as full:
        assert await full.experiment("shared") == before
        with pytest.raises(PermissionDeniedError, match="which is for others too"):
            await BY_NAME[ask](full, "shared")
    assert await ops.experiment("shared") == before


async def test_a_mix_that_must_not_be_seen_is_not_replaced(
    served: Secured, ops: AsyncClient
) -> None:
    await ops.register_mix("full-leak", "body")
    async with served.client("full") as full:
        await full.create_experiment(OWN)
        await full.start_experiment("full-tone")
        for name in ("full-leak", "prod"):
            with pytest.raises(PermissionDeniedError) as caught:
                await full.promote_experiment("full-tone", "half", name)
            assert "body" not in str(caught.value)
        assert (await full.experiment("full-tone")).status == "running"


async def test_outcomes_are_of_ones_own_subjects(
    served: Secured, ops: AsyncClient, parts: Parts
) -> None:
    await ops.create_experiment(replace(OWN, name="shared", tenants=("full", "other")))
    await ops.start_experiment("shared")
    await answered(parts, "shared", "ann", Principal(Tenant("other", tasks=("*",), id="other-id")))
    outcome = Outcome(metric="rating", value=1.0, subject="ann", key="k")
    async with served.client("full") as full:
        with pytest.raises(NotFoundError):
            await full.record_outcomes("shared", [outcome])
    assert await ops.record_outcomes("shared", [outcome]) == Recorded(1, 0)
