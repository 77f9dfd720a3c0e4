"""The times and tokens that a request leaves behind."""

from contextlib import suppress

import pytest

from taskmix_server.telemetry.requests import MAX_RUNS, Phases, RequestRecord

PHASES = Phases(queued_s=10.1, scheduled_s=10.2, first_token_s=10.5, last_token_s=11.3)


def record() -> RequestRecord:
    return RequestRecord("id", "grpc", started_s=10.0)


def test_a_stream_is_timed_where_its_tokens_arrive() -> None:
    request = record()
    with request.run() as run:
        run.advance(10.6, {0: 1}, None)
        run.advance(11.0, {0: 3}, None)
        run.advance(11.4, {0: 1}, PHASES)
    assert request.ttft_s == pytest.approx(0.6)
    assert run.inter_token_s == pytest.approx((11.4 - 10.6) / 4)
    assert run.phases == PHASES


def test_a_whole_answer_is_timed_where_its_tokens_were_made() -> None:
    request = record()
    with request.run() as run:
        run.advance(12.0, {0: 5}, PHASES)
    assert request.ttft_s == pytest.approx(0.5)
    assert run.inter_token_s == pytest.approx((11.3 - 10.5) / 4)


def test_the_longest_completion_counts_the_steps() -> None:
    with record().run() as run:
        run.advance(10.5, {0: 1, 1: 1}, None)
        run.advance(11.5, {0: 1, 1: 4}, None)
    assert run.inter_token_s == pytest.approx(1.0 / 4)


def test_one_token_has_no_gaps_and_none_has_no_first() -> None:
    request = record()
    with request.run() as run:
        run.advance(10.5, {0: 0}, None)
        assert request.ttft_s is None
        run.advance(10.7, {0: 1}, None)
    assert request.ttft_s == pytest.approx(0.7)
    assert run.inter_token_s is None


def test_tokens_add_up_over_runs_that_end_early_too() -> None:
    request = record()
    for _ in range(MAX_RUNS + 3):
        with suppress(KeyError), request.run() as run:
            run.num_prompt_tokens, run.num_cached_tokens = 7, 2
            run.advance(10.5, {0: 1, 1: 2}, None)
            raise KeyError
    num_runs = MAX_RUNS + 3
    assert len(request.runs) == MAX_RUNS
    assert request.num_prompt_tokens == 7 * num_runs
    assert request.num_cached_tokens == 2 * num_runs
    assert request.num_output_tokens == 3 * num_runs
