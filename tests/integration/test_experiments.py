"""Experiments on a real server: from a draft to the mix that answers."""

import asyncio
import json
import subprocess
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import nullcontext

import openai
import pytest

from taskmix_client import (
    AsyncClient,
    Client,
    DeadlineExceededError,
    Guardrail,
    HaltedArm,
    NotFoundError,
    Outcome,
)
from tests.support.experiments import SUBJECTS, arms_of, started
from tests.support.served import TASKMIX, Served, metrics

Run = Callable[..., str]

STOPPED_WITHIN_S = 60.0
NUM_AT_ONCE = 10
NUM_TOKENS = 8
ENDLESS = 400
DEADLINE_S = 0.2


@pytest.fixture
def sdk(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.http}/v1", api_key="unused", max_retries=0) as opened:
        yield opened


@pytest.fixture
def taskmix(served: Served) -> Run:
    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*TASKMIX, "experiments", *arguments, "--server", served.grpc],
            check=True,
            capture_output=True,
            text=True,
            timeout=120,
        )
        return done.stdout

    return run


def test_from_a_draft_to_a_decision(taskmix: Run, client: Client) -> None:
    client.register_mix("best", "a")
    arms = ("--arm", "control=@best", "--arm", "mixed=a:0.6+b:0.4")
    assert "draft" in taskmix("create", "tone", *arms, "--guardrail", "error_rate<=0.05")
    assert "running" in taskmix("start", "tone")
    shown = json.loads(taskmix("show", "tone"))
    control, mixed = shown["design"]["arms"]
    assert control["mix_digest"] == client.generate("x", mix_name="best", max_tokens=1).mix_digest
    assert "sample ratio: as planned" in taskmix("results", "tone")
    with pytest.raises(NotFoundError, match="which this experiment has not answered"):
        client.record_outcomes("tone", [Outcome(metric="rating", value=1.0, subject="nobody")])
    taskmix("promote", "tone", "--arm", "mixed", "--as", "best")
    answer = client.generate("x", mix_name="best", max_tokens=1)
    assert (answer.mix_digest, answer.mix) == (mixed["mix_digest"], mixed["mix"])
    taskmix("rollback", "tone")
    answer = client.generate("x", mix_name="best", max_tokens=1)
    assert answer.mix_digest == control["mix_digest"]
    client.delete_mix("best")


def test_both_edges_give_a_subject_the_same_arm(client: Client, sdk: openai.OpenAI) -> None:
    two = started(client, "edges", control="a", mixed="a:0.5+c:0.5")
    digests = {f"edges@1/{arm.name}": arm.mix_digest for arm in two.design.arms}
    arms = arms_of(client, "edges")
    assert set(arms.values()) == set(digests)
    for subject, arm in arms.items():
        completion = sdk.completions.with_raw_response.create(
            model="experiment:edges", prompt="x", user=subject, max_tokens=2
        )
        assert completion.headers["x-taskmix-arm"] == arm
        assert completion.headers["x-taskmix-digest"] == digests[arm]
    turns = [{"role": "user", "content": "Hello"}]
    chat = sdk.chat.completions.with_raw_response.create(
        model="experiment:edges", messages=turns, user=SUBJECTS[0], max_tokens=2
    )
    assert chat.headers["x-taskmix-arm"] == arms[SUBJECTS[0]]
    results = client.experiment_results("edges")
    assert sum(arm.num_subjects for arm in results.traffic) == len(SUBJECTS)
    assert sum(arm.num_requests for arm in results.traffic) == 2 * len(SUBJECTS) + 1
    kept = {result.metric: result for result in results.metrics}
    assert all(each.value > 0.0 for each in kept["latency_s"].estimates)
    assert all(each.value == 0.0 for each in kept["error_rate"].estimates)
    client.stop_experiment("edges")


def test_an_outcome_of_a_request_over_http(client: Client, sdk: openai.OpenAI) -> None:
    started(client, "by-request", control="a", mixed="b")
    answer = sdk.completions.with_raw_response.create(
        model="experiment:by-request", prompt="x", max_tokens=1
    )
    request_id = answer.headers["x-taskmix-request"]
    recorded = client.record_outcomes(
        "by-request", [Outcome(metric="rating", value=1.0, request_id=request_id)]
    )
    assert recorded.num_new == 1
    client.stop_experiment("by-request")


async def test_arms_share_a_batch(served: Served, client: Client) -> None:
    """Each answer is what its arm's mix gives alone, and steps had rows of both arms."""
    mixes = {"control": "a", "mixed": "a:0.5+c:0.5"}
    started(client, "batch", **mixes)
    alone = {
        f"batch@1/{arm}": client.generate("x", mix=mix, max_tokens=32, temperature=0.0).token_ids
        for arm, mix in mixes.items()
    }
    before = metrics(served.http)
    async with AsyncClient(served.grpc, timeout_s=60) as asking:
        answers = await asyncio.gather(
            *(
                asking.generate(
                    "x",
                    experiment="batch",
                    subject=subject,
                    max_tokens=32,
                    temperature=0.0,
                    ignore_eos=True,
                )
                for subject in SUBJECTS[:8]
            )
        )
    after = metrics(served.http)
    assert {answer.arm for answer in answers} == set(alone)
    assert all(answer.token_ids == alone[answer.arm] for answer in answers)
    steps = ("taskmix_steps_added", "taskmix_steps_merged")
    num_steps = sum(after[name] - before[name] for name in steps)
    assert num_steps < 2 * 32, "one arm after the other takes 32 steps for each"
    client.stop_experiment("batch")


Ask = Callable[[AsyncClient, str], Awaitable[object]]


async def halted_under_load(
    served: Served, client: Client, name: str, ask: Ask
) -> tuple[HaltedArm, ...]:
    """Ask for every subject again and again until an arm is stopped, for a minute at most."""
    began_s = time.monotonic()
    halted: tuple[HaltedArm, ...] = ()
    async with AsyncClient(served.grpc, timeout_s=60) as asking:
        while not halted and time.monotonic() - began_s < STOPPED_WITHIN_S:
            for first in range(0, len(SUBJECTS), NUM_AT_ONCE):
                some = SUBJECTS[first : first + NUM_AT_ONCE]
                await asyncio.gather(*(ask(asking, subject) for subject in some))
            halted = client.experiment(name).halted
    return halted


def assert_only_stopped(served: Served, client: Client, arms: dict[str, str], stopped: str) -> None:
    """The control answers the subjects of the stopped arm, a NAME@1/ARM; the others keep theirs."""
    name, _, _ = stopped.partition("@")
    assert client.experiment(name).status == "running"
    for subject, arm in arms_of(client, name).items():
        assert arm == (f"{name}@1/-" if arms[subject] == stopped else arms[subject])
    seen = metrics(served.http)
    assert seen[f'taskmix_guardrail_stops_total{{arm="{stopped}"}}'] == 1.0
    assert client.audit(1)[0].tenant == "guardrail"
    client.stop_experiment(name)


async def test_a_slow_arm_is_stopped_under_load(served: Served, client: Client) -> None:
    """After a good while an arm's answers get three times as long, as those of a mix do that has
    unlearned to stop: it loses its traffic within a minute, and the others go on."""
    rule = Guardrail("latency_s", "at_most", 1.5, is_relative=True, quantile=0.95)
    started(client, "slow", rule, control="a", wordy="a:0.9+c:0.1", other="a:0.8+c:0.2")
    arms = arms_of(client, "slow")
    assert {arm.rpartition("/")[2] for arm in arms.values()} == {"control", "wordy", "other"}

    async def ask(asking: AsyncClient, subject: str, num_tokens: int = NUM_TOKENS) -> None:
        await asking.generate(
            "x", experiment="slow", subject=subject, max_tokens=num_tokens, ignore_eos=True
        )

    async def ask_wordy(asking: AsyncClient, subject: str) -> None:
        times = 3 if arms[subject].endswith("wordy") else 1
        await ask(asking, subject, times * NUM_TOKENS)

    async with AsyncClient(served.grpc, timeout_s=60) as asking:
        for subject in SUBJECTS * 3:
            await ask(asking, subject)
    halted = await halted_under_load(served, client, "slow", ask_wordy)
    assert tuple(halt.arm for halt in halted) == ("wordy",)
    assert "times the control's' is broken" in halted[0].why
    assert_only_stopped(served, client, arms, "slow@1/wordy")


async def test_a_failing_arm_is_stopped_under_load(served: Served, client: Client) -> None:
    """One in ten of an arm's answers does not end before its caller's deadline."""
    rule = Guardrail("error_rate", "at_most", 0.02)
    started(client, "failing", rule, control="a", endless="a:0.9+c:0.1", other="a:0.8+c:0.2")
    arms = arms_of(client, "failing")
    turns: Counter[str] = Counter()

    async def ask(asking: AsyncClient, subject: str) -> None:
        arm = arms[subject].rpartition("/")[2]
        turns[arm] += 1
        is_endless = arm == "endless" and turns[arm] % 10 == 0
        answering = asking.generate(
            "x",
            experiment="failing",
            subject=subject,
            max_tokens=ENDLESS if is_endless else NUM_TOKENS,
            ignore_eos=True,
            timeout_s=DEADLINE_S if is_endless else None,
        )
        with pytest.raises(DeadlineExceededError) if is_endless else nullcontext():
            await answering

    halted = await halted_under_load(served, client, "failing", ask)
    assert tuple(halt.arm for halt in halted) == ("endless",)
    assert "error_rate" in halted[0].why
    assert_only_stopped(served, client, arms, "failing@1/endless")
