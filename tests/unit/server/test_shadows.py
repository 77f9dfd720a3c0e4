"""Shadow arms over a fake engine: what is kept of a copy, and what makes it give way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from taskmix_composer.mix import Mix
from taskmix_server.domain.generation import ExperimentTarget, GenerationRequest, SamplingOptions
from taskmix_server.experiments.design import Arm, Design, Shadow
from taskmix_server.experiments.experiment import Experiment
from taskmix_server.experiments.results import ShadowResult, results
from taskmix_server.runtime.experiments.copies import Copy
from taskmix_server.runtime.experiments.shadows import (
    BUSY,
    FULL,
    MAX_PENDING,
    PRIORITY,
    Shadows,
)
from taskmix_server.services.inference import InferenceService
from taskmix_server.telemetry.outcomes import FAILED, OK
from taskmix_server.telemetry.requests import RequestRecord
from taskmix_server.tenancy.audit import Author
from taskmix_server.tenancy.principal import DEFAULT, Principal
from taskmix_server.tenancy.tenant import Role, Tenant
from tests.unit.server.conftest import Parts

AUTHOR = Author("ops", "", "")
TOLD_S = 10.0


class Watched:
    """Shadows that tell a test what became of each copy."""

    def __init__(self, parts: Parts) -> None:
        self.told: asyncio.Queue[str] = asyncio.Queue()
        running = parts.experiments.running
        self.shadows = Shadows(
            parts.engine, parts.variants, running, self.told.put_nowait, quiet_s=0.0
        )
        self.parts = parts
        self.inference: InferenceService = replace(parts.inference, shadows=self.shadows)

    async def ask(self, number: int = 0, principal: Principal = DEFAULT, **options: Any) -> None:
        """A request of the experiment, from its start to its report."""
        name = f"request {number}"
        record = RequestRecord(name)
        sampling = SamplingOptions(**{"max_tokens": 4, **options})
        request = GenerationRequest(name, (1, 2, 3), ExperimentTarget("tone", "ann"), sampling)
        async with self.inference.observed(record, str):
            await self.inference.generate(request, principal, record)

    async def next_told(self) -> str:
        return await asyncio.wait_for(self.told.get(), TOLD_S)

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.shadows.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def results(self) -> tuple[ShadowResult, ...]:
        service = self.parts.experiments
        await service.running.flush()
        return results(service.database, service.store.get("tone")).shadows


@pytest.fixture
def watched(parts: Parts) -> Watched:
    return Watched(parts)


def start(parts: Parts, mix: str = "body", digest: str = "") -> Experiment:
    """An experiment of one arm whose every request is copied to a shadow."""

    def pinned(text: str) -> tuple[Mix, str]:
        return Mix.parse(text), parts.variants.resolve(Mix.parse(text)).digest

    shadow = Shadow("next", Mix.parse(mix), digest or pinned(mix)[1], 1.0)
    arms = (Arm("control", *pinned("body:0.5"), 1.0),)
    store = parts.experiments.store
    store.create(Experiment(Design("tone", arms, shadows=(shadow,))), AUTHOR)
    return store.start("tone", AUTHOR)


async def test_a_copy_is_answered_and_compared(parts: Parts, watched: Watched) -> None:
    start(parts)
    async with watched.working():
        await watched.ask()
        assert await watched.next_told() == OK
    (shadow,) = await watched.results()
    assert (shadow.arm, shadow.num_requests, shadow.error_rate) == ("next", 1, 0.0)
    assert (shadow.agreement, shadow.served_logprob) == (1.0, -0.5)
    assert (shadow.tokens, shadow.served_tokens) == (4.0, 4.0)
    traffic = results(parts.experiments.database, parts.experiments.store.get("tone")).traffic
    assert [arm.num_requests for arm in traffic] == [1]


async def test_it_comes_last_and_shares_the_tenants_cache(parts: Parts, watched: Watched) -> None:
    start(parts)
    tenant = Principal(Tenant("ops", Role.ADMIN, id="an id"))
    async with watched.working():
        await watched.ask(principal=tenant)
        assert await watched.next_told() == OK
    assert parts.engine.priorities[0] < parts.engine.priorities[1] == PRIORITY
    assert set(parts.engine.salts) == {tenant.cache_salt}


async def test_a_changed_head_has_no_log_probability(parts: Parts, watched: Watched) -> None:
    start(parts, mix="head")
    async with watched.working():
        await watched.ask()
        assert await watched.next_told() == OK
    (shadow,) = await watched.results()
    assert (shadow.served_logprob, shadow.agreement) == (None, 1.0)


async def test_a_request_that_comes_ends_a_copy(parts: Parts, watched: Watched) -> None:
    start(parts)
    endless = Copy(None)
    endless.end((1, 2), SamplingOptions(max_tokens=10**9))
    assigned = await parts.experiments.running.assign("tone", "ann", "r", DEFAULT)
    async with watched.working():
        watched.shadows.offer(endless, assigned, RequestRecord("r"))
        await asyncio.wait_for(parts.engine.seen["register"].wait(), TOLD_S)
        await watched.ask()
        assert await watched.next_told() == BUSY
        assert await watched.next_told() == OK
        assert parts.engine.num_generating == 0


async def test_no_copy_is_begun_while_a_request_is_open(parts: Parts, watched: Watched) -> None:
    start(parts)
    async with watched.working():
        with watched.shadows.aside():
            await watched.ask()
            for _ in range(1000):
                await asyncio.sleep(0)
            assert (watched.told.qsize(), len(parts.engine.priorities)) == (0, 1)
        assert await watched.next_told() == OK


async def test_copies_are_bounded(parts: Parts, watched: Watched) -> None:
    start(parts)
    for number in range(MAX_PENDING + 2):
        await watched.ask(number)
    assert [watched.told.get_nowait() for _ in range(watched.told.qsize())] == [FULL, FULL]


async def test_what_failed_is_not_copied(parts: Parts, watched: Watched) -> None:
    start(parts)
    parts.engine.failure = RuntimeError("broken")
    with pytest.raises(RuntimeError):
        await watched.ask()
    parts.engine.failure = None
    async with watched.working():
        await watched.ask(1)
        assert await watched.next_told() == OK
    (shadow,) = await watched.results()
    assert shadow.num_requests == 1


async def test_a_shadow_that_fails_harms_nobody(
    parts: Parts, watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    start(parts, digest="of other content")
    async with watched.working():
        await watched.ask()
        assert await watched.next_told() == FAILED
        await watched.ask(1)
        assert await watched.next_told() == FAILED
    assert "has changed since the experiment was made" in caplog.text
    (shadow,) = await watched.results()
    assert (shadow.num_requests, shadow.error_rate, shadow.agreement) == (2, 1.0, None)


async def test_errors_are_kept_apart_from_answers(parts: Parts, watched: Watched) -> None:
    start(parts)
    async with watched.working():
        await watched.ask()
        assert await watched.next_told() == OK
        with watched.shadows.aside():
            await watched.ask(1)
            parts.engine.failure = RuntimeError("broken")
        assert await watched.next_told() == FAILED
    (shadow,) = await watched.results()
    assert (shadow.num_requests, shadow.error_rate) == (2, 0.5)
    assert (shadow.agreement, shadow.tokens) == (1.0, 4.0), "of the answer alone"


async def test_of_several_answers_the_first_is_compared(parts: Parts, watched: Watched) -> None:
    start(parts)
    async with watched.working():
        await watched.ask(n=3, temperature=0.5, seed=7)
        assert await watched.next_told() == OK
    (shadow,) = await watched.results()
    assert (shadow.agreement, shadow.tokens) == (1.0, 4.0)
    asked, copied, _ = parts.engine.samplings
    assert copied == replace(asked, n=1)


async def test_a_changed_head_is_not_asked_for_log_probabilities(
    parts: Parts, watched: Watched
) -> None:
    start(parts, mix="head")
    async with watched.working():
        await watched.ask(prompt_logprobs=True, logprobs=True)
        assert await watched.next_told() == OK
    asked, copied = parts.engine.samplings
    assert copied == replace(asked, prompt_logprobs=False, logprobs=False)


async def test_the_engine_knows_whom_nobody_waits_for(parts: Parts, watched: Watched) -> None:
    start(parts)
    async with watched.working():
        await watched.ask()
        assert await watched.next_told() == OK
    assert [variant.is_shadow for variant in parts.engine.asked] == [False, True, True]


@pytest.mark.parametrize(
    ("served", "shadow", "share"),
    [
        ([], [], 1.0),
        ([1, 2], [1, 2], 1.0),
        ([1, 2, 3, 4], [1, 2, 9, 4], 0.5),
        ([1, 2], [1, 2, 3, 4], 0.5),
        ([1], [], 0.0),
        ([1, 2], [2, 1], 0.0),
    ],
)
def test_agreement(served: list[int], shadow: list[int], share: float) -> None:
    copy = Copy(None)
    copy.hear(served)
    assert copy.agreement(shadow) == share
