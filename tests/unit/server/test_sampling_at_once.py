"""What a model runner answers `execute_model` with, when it samples at once."""

from types import SimpleNamespace
from typing import Any

import pytest

from taskmix_server.engine.vllm.sampling import sample_at_once


class Runner:
    """As vLLM's: `execute_model` gives None where there is something left to sample."""

    def __init__(self, output: Any) -> None:
        self.output = output
        self.sampled: list[Any] = []

    def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None) -> Any:
        assert intermediate_tensors is None
        return self.output

    def sample_tokens(self, grammar_output: Any) -> str:
        self.sampled.append(grammar_output)
        return "tokens"


def executed(runner: Runner, *, has_grammar: bool) -> Any:
    sample_at_once(runner)
    return runner.execute_model(SimpleNamespace(has_structured_output_requests=has_grammar))


def test_tokens_come_with_the_first_answer() -> None:
    runner = Runner(None)
    assert executed(runner, has_grammar=False) == "tokens"
    assert runner.sampled == [None]


@pytest.mark.parametrize(
    ("output", "has_grammar"), [(None, True), ("nothing ran", False)], ids=["grammar", "no step"]
)
def test_nothing_is_sampled_ahead_of_a_grammar_or_without_a_step(
    output: Any, has_grammar: bool
) -> None:
    runner = Runner(output)
    assert executed(runner, has_grammar=has_grammar) == output
    assert runner.sampled == []
