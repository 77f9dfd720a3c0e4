"""The population that meets an experiment."""

from collections import Counter

import pytest

from examples.experiment import Seen, drawn, show
from examples.tasks.task import Example, Task

TASKS = [
    Task(name, "", 4, (), tuple(Example(f"{name} {number}", "x") for number in range(5)))
    for name in ("plurals", "dates")
]


def test_a_seed_draws_the_same_visits() -> None:
    visits = list(drawn(TASKS, 10, 3, seed=1))
    assert visits == list(drawn(TASKS, 10, 3, seed=1))
    assert visits != list(drawn(TASKS, 10, 3, seed=2))
    assert Counter(visit.subject for visit in visits) == {f"user-{n}": 3 for n in range(10)}
    assert [visit.number for visit in visits] == list(range(30))


def test_what_each_arm_answered(capsys: pytest.CaptureFixture[str]) -> None:
    visits = drawn(TASKS, 4, 1, seed=1)
    arms = ("tone@1/control", "tone@1/-", "tone@1/control", "tone@1/mixed")
    seen = [
        Seen(visit, arm, is_right=visit.number == 0)
        for visit, arm in zip(visits, arms, strict=True)
    ]
    show(seen)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1:] == [
        ["tone@1/-", "1", "0.0%"],
        ["tone@1/control", "2", "50.0%"],
        ["tone@1/mixed", "1", "0.0%"],
    ]
    outcome = seen[0].outcome
    assert (outcome.metric, outcome.value, outcome.subject) == ("right", 1.0, "user-0")
